"""The forward of a patched model: body, labelled rows, head and loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.columns import Rows, read_rows
from w2s_fast.integrations.patching.heads import owner, through
from w2s_fast.integrations.patching.predictions import refuse_predictions
from w2s_fast.integrations.patching.schedule import changes, coefficient_at, read_progress
from w2s_fast.integrations.patching.whole import Unpickled
from w2s_fast.losses import Loss
from w2s_fast.losses.xent import Xent
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.targets import SparseTargets

_XENT = Xent()


class Unstored(Projected):
    """Projected logits that refuse to be stored."""

    def dense(self) -> Tensor:
        """Never: the promise of a patched model is that this does not happen."""
        raise W2SError("this loss needs logits; choose one that is fused, such as xent or logconf")


class _Coefficient:
    """A loss's coefficient of now, as a tensor: compiled code would keep a number for ever."""

    def __init__(self) -> None:
        self.value = torch.zeros(())

    def __call__(self, frac: float, step: int | None = None) -> Tensor:
        return self.value


@dataclass
class State(Unpickled):
    """What a patched model carries.

    Attributes:
        forward: what ``patch`` put there.
        loss: of the training; eval mode has plain cross-entropy.
        kinds: of targets the loss takes, of ``hard``, ``dense``, ``sparse``.
        memory_mib: of a chunk of logits.
        softcap, factor: logits are softcap tanh(factor (head hidden + bias) / softcap).
        frac, step: see ``tell``.
        told: whether they were set.
        asked: whether a loss or log-probabilities were computed since this was last made false.
        now: the coefficient they give, and ``timed``, the loss that reads it.
        show: give logits in full, to be compared with the model's own.
    """

    forward: Callable[..., Any]
    loss: Loss
    kinds: tuple[str, ...]
    memory_mib: float
    softcap: float
    factor: float
    frac: float = 0.0
    step: int | None = None
    told: bool = False
    asked: bool = False
    show: bool = False
    now: _Coefficient = field(default_factory=_Coefficient)

    def __post_init__(self) -> None:
        self.scheduled = changes(self.loss)
        self.timed = copy.copy(self.loss)
        if self.scheduled:
            object.__setattr__(self.timed, "coefficient", self.now)

    def tell(self, frac: float, step: int | None) -> None:
        """Where in training this is, see ``Loss.coefficient``."""
        now = coefficient_at(self.loss, frac, step)
        self.frac, self.step, self.told = frac, step, True
        self.now.value.fill_(now)

    def project(self, kind: type[Projected]) -> Callable[[Tensor, Tensor, Tensor | None], Any]:
        """Logits of hidden states, head and bias, not computed."""

        def project(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Projected:
            if self.factor != 1:
                hidden = hidden * self.factor
                bias = None if bias is None else bias * self.factor
            return kind(hidden, weight, bias, self.softcap, self.memory_mib)

        return project


def loss_output(lm: Any, given: dict[str, Any], columns: dict[str, Any]) -> Any:
    """``CausalLMOutputWithPast`` with the loss and without logits."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    state: State = lm._w2s_fast
    state.asked = True
    refuse_logits(given)
    labels, shift_labels, n_items, as_dict = (
        given.pop(k, None) for k in ("labels", "shift_labels", "num_items_in_batch", "return_dict")
    )
    _progress(lm, state, columns)
    if not lm.training:
        refuse_predictions(labelled=labels is not None or shift_labels is not None)
    given = {k: v for k, v in given.items() if v is not None}
    body = lm.base_model(**given, return_dict=True)
    head = lm.get_output_embeddings()
    hidden = body.last_hidden_state
    if state.show:
        projected = through(head, hidden.flatten(0, -2), state.project(Projected))
        return CausalLMOutputWithPast(logits=projected.dense())
    size = (hidden.shape[0], hidden.shape[1])
    vocabulary = int(owner(head).out_features)
    rows = read_rows(labels, shift_labels, columns, size, vocabulary, hidden, n_items)
    loss = _loss(lm, state, rows, head)
    out = CausalLMOutputWithPast(
        loss=loss,
        past_key_values=getattr(body, "past_key_values", None),
        hidden_states=getattr(body, "hidden_states", None),
        attentions=getattr(body, "attentions", None),
    )
    as_dict = getattr(lm.config, "return_dict", True) if as_dict is None else as_dict
    return out if as_dict else out.to_tuple()


def _loss(lm: Any, state: State, rows: Rows, head: Any) -> Tensor:
    kind = "sparse" if isinstance(rows.weak, SparseTargets) else "hard"
    if isinstance(rows.weak, Tensor) and rows.weak.is_floating_point():
        kind = "dense"
    if lm.training and kind not in state.kinds:
        name = type(state.loss).__name__
        raise W2SError(f"{name} takes no {kind} weak labels; expected {' or '.join(state.kinds)}")
    project = state.project(Unstored)

    def then(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits: Any = project(hidden, weight, bias)
        weak: Any = rows.weak
        if not lm.training:
            return _XENT(logits, weak, weight=rows.weight).loss_sum
        loss = state.timed if torch.compiler.is_compiling() else state.loss
        return loss(logits, weak, weight=rows.weight, frac=state.frac, step=state.step).loss_sum

    return through(head, rows.hidden, then)


def _progress(lm: Any, state: State, columns: dict[str, Any]) -> None:
    """Take the columns that say where in training this is.

    Raises:
        W2SError: if a loss that needs to know was never told.
    """
    progress = read_progress(columns)
    if progress is not None:
        state.tell(*progress)
    if lm.training and state.scheduled and not state.told:
        raise W2SError(
            f"{type(state.loss).__name__} changes over training and was not told where it is; call "
            "w2s_fast.integrations.patching.set_progress(model, frac) before a step, give the "
            "Trainer progress_callback(model), or send a weak_frac column"
        )


def refuse_logits(given: dict[str, Any]) -> None:
    """Raise ``W2SError`` where a forward with targets is asked for logits, or more than a loss."""
    keep = given.pop("logits_to_keep", None)
    for name, asked in (
        ("logits_to_keep", isinstance(keep, Tensor) or bool(keep)),
        ("output_logits", bool(given.pop("output_logits", None))),
    ):
        if asked:
            raise W2SError(
                f"{name} asks for logits, and a patched model makes none beside a loss; leave the "
                "targets out of this forward, or unpatch the model"
            )
    if given.get("output_router_logits"):
        raise W2SError("output_router_logits adds a router loss, which patch() does not; unpatch")
