"""Find out whether a model's own loss learns the label of token t + 1 at token t.

B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import weight_owner
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.own_forward import own_forward, without_logits
from w2s_fast.integrations.patching.probe import evaluating, probe_batch
from w2s_fast.integrations.patching.state import State
from w2s_fast.integrations.patching.verify import verify_first


class ShiftProbe:
    """Takes the place of ``F.cross_entropy`` and records which label meets which position.

    Attributes:
        labels: (B, T) labels to pass to the model, each different from its neighbours.
        shifts: whether the first loss had the label of t + 1 at every t; None before it.
    """

    def __init__(self, size: tuple[int, int], width: int) -> None:
        self.labels = (torch.arange(size[0] * size[1]) % width).view(size)
        self.shifts: bool | None = None

    def cross_entropy(
        self, logits: LazyLogits, target: Tensor, ignore: int, reduction: str, smoothing: float
    ) -> Tensor:
        """Compare positions and labels of the first call; return 0."""
        if self.shifts is None:
            self.shifts = self._shifts(logits.positions.flatten(), target.flatten(), ignore)
        return logits.hidden.new_zeros(())

    def _shifts(self, rows: Tensor, target: Tensor, ignore: int) -> bool:
        if len(rows) != len(target):
            return False
        labelled = target != ignore
        rows, target = rows[labelled], target[labelled]
        labels, length = self.labels.flatten().to(rows.device), self.labels.shape[1]
        inside = rows % length + 1 < length
        if not len(rows) or not bool(inside.all()) or int(rows.max()) + 1 >= len(labels):
            return False
        return torch.equal(labels[rows + 1], target.to(rows.device))


def detect_shift(lm: Any, state: State) -> None:
    """Set ``state.shifts`` by a trial on twelve tokens; compiled code cannot do it later."""
    batch = probe_batch(lm)
    ids = batch.pop("labels")
    width = int(weight_owner(lm.get_output_embeddings()).out_features)
    trial = ShiftProbe((ids.shape[0], ids.shape[1]), width)
    with torch.no_grad(), evaluating(lm), torch.random.fork_rng(devices=[]):
        try:
            with without_logits(lm, state.places, trial.cross_entropy):
                own_forward(lm, {**batch, "labels": trial.labels.to(ids.device)})
        except Exception:  # it needs more than ids; a later batch decides
            return
    state.shifts = trial.shifts
    if state.shifts is False:
        state.plain = False  # compiled code always shifts


def verify_first_batch(
    lm: Any, state: State, inputs: dict[str, Any], columns: dict[str, Any]
) -> None:
    """Verify the model at its first forward with targets, and detect the shift of labels."""
    verify_first(lm, state, inputs, columns)
    detect_shift(lm, state)


def check_shifted(lm: Any, state: State) -> None:
    """Raise ``W2SError`` for a model whose labels are known not to be shifted by one token."""
    if getattr(lm.config, "is_encoder_decoder", False):
        raise W2SError(
            f"return_logprob shifts labels by one token, and {type(lm).__name__} is an "
            "encoder-decoder, whose labels are not shifted; take log-probabilities "
            "from the logits of a forward without labels"
        )
    if state.shifts is False:
        raise W2SError(
            f"return_logprob shifts labels by one token, and the loss of {type(lm).__name__} does "
            "not; take log-probabilities from the logits of a forward without labels"
        )
