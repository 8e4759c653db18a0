"""State of a patched model, and the fused loss of labelled rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.columns import Rows
from w2s_fast.integrations.patching.heads import call_head
from w2s_fast.integrations.patching.logit_transform import LogitTransform
from w2s_fast.integrations.patching.pickling import NotPicklable
from w2s_fast.integrations.patching.schedule import coefficient_at, has_schedule
from w2s_fast.losses import Loss, LossContext
from w2s_fast.losses.hidden_teacher import HiddenTeacher, TeacherStates
from w2s_fast.losses.smoothing import Smoothing
from w2s_fast.losses.xent import Xent
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.vocab_parallel.dtensor import is_dtensor

_XENT = Xent()


class UncomputedLogits(Projected):
    """Uncomputed logits that refuse to be computed densely: a patched model never stores them."""

    def dense(self) -> Tensor:
        """Raise ``W2SError``."""
        raise W2SError("this loss needs logits; choose one that is fused, such as xent or logconf")


class _CoefficientTensor:
    """The current coefficient as a tensor; compiled code would treat a number as a constant."""

    def __init__(self) -> None:
        self.value = torch.zeros(())

    def __call__(self, step_frac: float, step: int | None = None) -> Tensor:
        return self.value


@dataclass
class State(NotPicklable):
    """State of a patched model. It holds nothing that a user may change on the model later.

    Attributes:
        forward: the forward that ``patch`` installed.
        loss: the training loss; eval mode uses plain cross-entropy.
        kinds: kinds of targets the loss takes, out of ``hard``, ``dense``, ``sparse``, ``states``.
        memory_mib: size of a chunk of logits, in MiB; None: chosen by device.
        step_frac, step: see ``set_progress``.
        progress_known: whether they were set.
        loss_computed: whether a loss or log-probabilities were computed since this was last reset.
        coefficient: the loss's coefficient at that progress; ``compiled_loss`` reads it.
        places: modules that hold the head and its names there; see ``own_forward.head_places``.
        compared: whether the model was compared with its unpatched self; see ``verify``.
        plain: whether its loss is the cross-entropy of its head on the last hidden states of its
            backbone and nothing more, so that compiled code may skip the model's own forward.
        loss_function, other_fields: those of the comparison; see ``forward``.
        shifts: whether its loss learns the label of t + 1 at t; None: not known yet.
    """

    forward: Callable[..., Any]
    loss: Loss
    kinds: tuple[str, ...]
    memory_mib: float | None
    step_frac: float = 0.0
    step: int | None = None
    progress_known: bool = False
    loss_computed: bool = False
    coefficient: _CoefficientTensor = field(default_factory=_CoefficientTensor)
    places: list[tuple[Any, str]] = field(default_factory=list)
    compared: bool = False
    plain: bool = False
    loss_function: Any = None
    logit_fields: tuple[tuple[str, Any], ...] = ()
    shifts: bool | None = None

    def __post_init__(self) -> None:
        self.scheduled = has_schedule(self.loss)
        self.compiled_loss = copy.copy(self.loss)
        if self.scheduled:
            object.__setattr__(self.compiled_loss, "coefficient", self.coefficient)

    def set_progress(self, step_frac: float, step: int | None) -> None:
        """Set where in training the model is; see ``Loss.coefficient``."""
        coefficient = coefficient_at(self.loss, step_frac, step)
        self.step_frac, self.step, self.progress_known = step_frac, step, True
        self.coefficient.value.fill_(coefficient)

    def project(
        self, kind: type[Projected], transform: LogitTransform
    ) -> Callable[[Tensor, Tensor, Tensor | None], Any]:
        """Return a function that makes uncomputed logits from hidden states, head and bias."""

        def project(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Projected:
            if is_dtensor(weight) and not (transform.classes is None and transform.bias is None):
                raise W2SError(
                    "the model cuts or shifts the logits of a head that tensor parallelism has "
                    "sharded; expected logits of its head: load the model without tp_plan"
                )
            if transform.classes is not None:
                weight = weight[: transform.classes]
                bias = None if bias is None else bias[: transform.classes]
            if transform.scale != 1:
                hidden = hidden * transform.scale
                bias = None if bias is None else bias * transform.scale
            if transform.bias is not None:
                extra = transform.bias.to(weight.device, weight.dtype)
                bias = extra if bias is None else bias + extra
            return kind(hidden, weight, bias, transform.softcap, self.memory_mib)

        return project

    def _check_kind(self, rows: Rows, training: bool, smoothing: float) -> None:
        """Raise ``W2SError`` for targets that the loss does not take."""
        kind = "sparse" if isinstance(rows.weak, SparseTargets) else "hard"
        if isinstance(rows.weak, Tensor) and rows.weak.is_floating_point():
            kind = "dense"
        if isinstance(rows.weak, TeacherStates):
            kind = "states"
        if (training or kind == "states") and kind not in self.kinds:
            takes = " or ".join(self.kinds)
            raise W2SError(
                f"{type(self.loss).__name__} takes no {kind} weak labels; expected {takes}"
            )
        if smoothing and (kind != "hard" or (training and type(self.loss) is not Xent)):
            raise W2SError(
                f"label_smoothing={smoothing} of the model's loss function came with weak labels "
                "or another loss; leave it at 0 and patch(model, loss='smoothing:epsilon=...')"
            )

    def loss_sum(
        self, lm: Any, rows: Rows, head: Any, transform: LogitTransform, smoothing: float = 0
    ) -> Tensor:
        """Compute the weighted sum of the row losses inside the call of the head.

        Raises:
            W2SError: if the loss does not take targets of this kind.
        """
        training = lm.training
        self._check_kind(rows, training, smoothing)
        project = self.project(UncomputedLogits, transform)

        def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            logits: Any = project(hidden, weight, bias)
            weak: Any = rows.weak
            if smoothing:
                return Smoothing(epsilon=smoothing)(logits, weak, weight=rows.weight).loss_sum
            if not training:
                plain: Loss = _XENT
                if isinstance(self.loss, HiddenTeacher) and isinstance(weak, TeacherStates):
                    plain = self.loss.as_cross_entropy()
                return plain.forward(logits, weak, LossContext(rows.weight)).loss_sum
            loss = self.compiled_loss if torch.compiler.is_compiling() else self.loss
            ctx = LossContext(rows.weight, self.step_frac, self.step)
            return loss.forward(logits, weak, ctx).loss_sum

        loss: Tensor = call_head(head, rows.hidden, head_fn)
        return loss
