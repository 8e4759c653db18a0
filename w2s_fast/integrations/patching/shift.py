"""Whether a model's own loss learns the label of token t + 1 at token t.

B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import owner
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.own_forward import own_forward, without_logits
from w2s_fast.integrations.patching.state import State
from w2s_fast.integrations.patching.verify import _evaluating, _tokens, compare_first


class Aligned:
    """Stands for ``F.cross_entropy`` and takes down which label meets which position.

    Attributes:
        labels: (B, T) to be given to the model, each another than its neighbours.
        shifts: whether the first loss had the label of t + 1 at t, everywhere; None before it.
    """

    def __init__(self, size: tuple[int, int], width: int) -> None:
        self.labels = (torch.arange(size[0] * size[1]) % width).view(size)
        self.shifts: bool | None = None

    def cross_entropy(
        self, logits: LazyLogits, target: Tensor, ignore: int, reduction: str, smoothing: float
    ) -> Tensor:
        """0, of one step that compares."""
        if self.shifts is None:
            self.shifts = self._shifts(logits.positions.flatten(), target.flatten(), ignore)
        return logits.hidden.new_zeros(())

    def _shifts(self, at: Tensor, target: Tensor, ignore: int) -> bool:
        if len(at) != len(target):
            return False
        kept = target != ignore
        at, target = at[kept], target[kept]
        labels, length = self.labels.flatten().to(at.device), self.labels.shape[1]
        inside = at % length + 1 < length
        if not len(at) or not bool(inside.all()) or int(at.max()) + 1 >= len(labels):
            return False
        return torch.equal(labels[at + 1], target.to(at.device))


def note_shift(lm: Any, state: State) -> None:
    """Find it out on the twelve tokens of the comparison: compiled code cannot do it later."""
    batch = _tokens(lm)
    ids = batch.pop("labels")
    width = int(owner(lm.get_output_embeddings()).out_features)
    seen = Aligned((ids.shape[0], ids.shape[1]), width)
    with torch.no_grad(), _evaluating(lm), torch.random.fork_rng(devices=[]):
        try:
            with without_logits(lm, state.places, seen.cross_entropy):
                own_forward(lm, {**batch, "labels": seen.labels.to(ids.device)})
        except Exception:  # it wants more than ids, and is asked again with a batch
            return
    state.shifts = seen.shifts
    if state.shifts is False:
        state.plain = False  # compiled code would shift them


def compare_first_and_shift(
    lm: Any, state: State, given: dict[str, Any], columns: dict[str, Any]
) -> None:
    """See ``compare_first`` and ``note_shift``."""
    compare_first(lm, state, given, columns)
    note_shift(lm, state)


def refuse_unshifted(lm: Any, state: State) -> None:
    """Raise ``W2SError`` where labels are known not to be shifted by one token."""
    if getattr(lm.config, "is_encoder_decoder", False):
        raise W2SError(
            f"return_logprob shifts labels by one token, and {type(lm).__name__} is an "
            "encoder-decoder, whose labels stand where they are learned; take log-probabilities "
            "from the logits of a forward without labels"
        )
    if state.shifts is False:
        raise W2SError(
            f"return_logprob shifts labels by one token, and the loss of {type(lm).__name__} does "
            "not; take log-probabilities from the logits of a forward without labels"
        )
