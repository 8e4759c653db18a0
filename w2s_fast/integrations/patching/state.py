"""What a patched model carries from call to call, and the fused loss of labelled rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.columns import Rows
from w2s_fast.integrations.patching.form import Form
from w2s_fast.integrations.patching.heads import through
from w2s_fast.integrations.patching.schedule import changes, coefficient_at
from w2s_fast.integrations.patching.whole import Unpickled
from w2s_fast.losses import Loss
from w2s_fast.losses.smoothing import Smoothing
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
    """What a patched model carries. It holds nothing of the model that a user may change later.

    Attributes:
        forward: what ``patch`` put there.
        loss: the training loss; eval mode has plain cross-entropy.
        kinds: targets the loss takes, out of ``hard``, ``dense``, ``sparse``.
        memory_mib: size of a chunk of logits.
        frac, step: see ``tell``.
        told: whether they were set.
        asked: whether a loss or log-probabilities were computed since this was last made false.
        now: the coefficient they give, and ``timed``, the loss that reads it.
        places: modules that hold the head and its names there, see ``own_forward.places``.
        compared: whether the model was compared with what it was, see ``verify``.
        plain: its loss is the cross-entropy of its head on the last hidden states of its body and
            nothing more: compiled code may go straight from one to the other.
        loss_function, other_fields: what it had when it was compared, see ``forward``.
    """

    forward: Callable[..., Any]
    loss: Loss
    kinds: tuple[str, ...]
    memory_mib: float
    frac: float = 0.0
    step: int | None = None
    told: bool = False
    asked: bool = False
    now: _Coefficient = field(default_factory=_Coefficient)
    places: list[tuple[Any, str]] = field(default_factory=list)
    compared: bool = False
    plain: bool = False
    loss_function: Any = None
    other_fields: tuple[tuple[str, Any], ...] = ()
    shifts: bool | None = None  # its loss learns the label of t + 1 at t; None: not seen yet

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

    def project(
        self, kind: type[Projected], form: Form
    ) -> Callable[[Tensor, Tensor, Tensor | None], Any]:
        """Logits of hidden states, head and bias, not computed."""

        def project(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Projected:
            if form.classes is not None:
                weight = weight[: form.classes]
                bias = None if bias is None else bias[: form.classes]
            if form.scale != 1:
                hidden = hidden * form.scale
                bias = None if bias is None else bias * form.scale
            if form.bias is not None:
                extra = form.bias.to(weight.device, weight.dtype)
                bias = extra if bias is None else bias + extra
            return kind(hidden, weight, bias, form.softcap, self.memory_mib)

        return project

    def _check_kind(self, rows: Rows, training: bool, smoothing: float) -> None:
        """Raise ``W2SError`` for targets that the loss does not take."""
        kind = "sparse" if isinstance(rows.weak, SparseTargets) else "hard"
        if isinstance(rows.weak, Tensor) and rows.weak.is_floating_point():
            kind = "dense"
        if training and kind not in self.kinds:
            takes = " or ".join(self.kinds)
            raise W2SError(
                f"{type(self.loss).__name__} takes no {kind} weak labels; expected {takes}"
            )
        if smoothing and (kind != "hard" or (training and type(self.loss) is not Xent)):
            raise W2SError(
                f"label_smoothing={smoothing} of the model's loss function came with weak labels "
                "or another loss; leave it at 0 and patch(model, loss='smoothing:epsilon=...')"
            )

    def loss_sum(self, lm: Any, rows: Rows, head: Any, form: Form, smoothing: float = 0) -> Tensor:
        """Weighted sum of the row losses, computed inside the call of the head.

        Raises:
            W2SError: if the loss does not take targets of this kind.
        """
        training = lm.training
        self._check_kind(rows, training, smoothing)
        project = self.project(Unstored, form)

        def then(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            logits: Any = project(hidden, weight, bias)
            weak: Any = rows.weak
            if smoothing:
                return Smoothing(epsilon=smoothing)(logits, weak, weight=rows.weight).loss_sum
            if not training:
                return _XENT(logits, weak, weight=rows.weight).loss_sum
            loss = self.timed if torch.compiler.is_compiling() else self.loss
            return loss(logits, weak, weight=rows.weight, frac=self.frac, step=self.step).loss_sum

        loss: Tensor = through(head, rows.hidden, then)
        return loss
