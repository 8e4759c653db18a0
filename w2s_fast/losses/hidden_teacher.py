"""A teacher given by hidden states and heads, as a loss of a patched model.

    L = sum_i w_i D(q_i, p_i),     q = softmax(sum_m a_m softcap_m(h_m W_m^T + b_m) / T)

The states h_m come with each batch, the heads W_m belong to the loss. Formula and divergences D are
those of ``linear_cross_entropy(teacher=...)``, which computes q chunk by chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import Loss, LossContext, LossOut, summed_metrics
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.fused_linear.teacher.checks import check_options
from w2s_fast.ops.fused_linear.teacher.heads import CROSS_ENTROPY, TeacherHead
from w2s_fast.ops.lazy_logits import Projected


class TeacherStates(NamedTuple):
    """Targets of n rows: (n, sum_m D_m) last hidden states of the terms, side by side."""

    hidden: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenTeacher(Loss):
    """Divergence from a teacher whose hidden states are a column of the batch.

    Attributes:
        heads: terms ``(scale, head)``, ``(scale, head, bias)`` or ``(scale, head, bias, softcap)``
            as in ``TeacherHead``, on the device of the student. Their widths divide the states.
        temperature, divergence, beta: see ``linear_cross_entropy``.
    """

    heads: Sequence[tuple[Any, ...]]
    temperature: float = 1.0
    divergence: str = CROSS_ENTROPY
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_options(self.temperature, self.divergence, self.beta)
        if not isinstance(self.heads, list | tuple) or not self.heads:
            raise W2SError(
                "HiddenTeacher: heads are no list of terms; expected [(scale, head), ...]"
            )
        for m, term in enumerate(self.heads):
            fits = isinstance(term, tuple) and 2 <= len(term) <= 4
            if not fits or not isinstance(term[1], Tensor) or term[1].dim() != 2:
                raise W2SError(
                    f"HiddenTeacher: heads[{m}] is {type(term).__name__}; expected (scale, head) "
                    "with a head (V, D), then optionally a bias (V,) and a soft-cap"
                )

    @property
    def width(self) -> int:
        """The width of the states, sum_m D_m."""
        return sum(int(term[1].shape[1]) for term in self.heads)

    def as_cross_entropy(self) -> HiddenTeacher:
        """Return the cross-entropy from the same teacher, which evaluation reports."""
        return dataclasses.replace(self, divergence=CROSS_ENTROPY)

    def forward(self, logits: Any, weak: Any, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``; ``weak`` is ``TeacherStates`` and logits are not yet computed."""
        if not isinstance(weak, TeacherStates) or not isinstance(logits, Projected):
            raise W2SError(
                "HiddenTeacher takes hidden states of a teacher in a patched model; expected a "
                "weak_states column, or linear_cross_entropy(hidden, head, teacher=[...])"
            )
        value, stats = linear_cross_entropy(
            logits.hidden, logits.weight, teacher=self._terms(weak.hidden), bias=logits.bias,
            softcap=logits.softcap, memory_mib=logits.memory_mib, weight=ctx.weight,
            temperature=self.temperature, divergence=self.divergence, beta=self.beta,
            reduction="sum", return_stats=True,
        )  # fmt: skip
        n = weak.hidden.shape[0]
        counted = ctx.weight != 0 if ctx.weight is not None else stats.agreement.new_ones(n)
        metrics = summed_metrics(counted, stats.agreement, stats.max_prob, stats.entropy)
        return LossOut(value, stats.count, ctx.state, metrics)

    def _terms(self, hidden: Tensor) -> list[TeacherHead]:
        if hidden.dim() != 2 or hidden.shape[1] != self.width:
            raise W2SError(
                f"weak_states are {hidden.shape[-1]} wide; expected {self.width}, the widths of "
                f"the {len(self.heads)} teacher heads together"
            )
        parts = hidden.split([int(term[1].shape[1]) for term in self.heads], 1)
        return [
            TeacherHead(term[0], part.to(term[1].dtype), *term[1:])
            for term, part in zip(self.heads, parts, strict=True)
        ]
