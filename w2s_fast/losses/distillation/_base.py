r"""Base class of distillation losses from an offline teacher with top-k probabilities.

The K top classes of the teacher and the event "none of them" are K + 1 outcomes; q is the teacher's
distribution over them and p the student's, whose last entry is the mass outside the top k.
Divergences are computed between these two coarse distributions. They assume nothing about how the
teacher distributes the remaining mass, and by the data-processing inequality they are lower bounds
of the divergences between the full distributions. T is the temperature of the student; that of the
teacher is part of its probabilities (``w2s_fast.pack_topk(..., temperature=T)``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import summed_metrics
from w2s_fast.ops.arguments import check_methods, check_number
from w2s_fast.ops.checks import check_total, check_weight, check_weight_dtype
from w2s_fast.ops.fused_linear.cross_entropy import flat_rows
from w2s_fast.ops.fused_linear.logprob import make_head
from w2s_fast.ops.fused_linear.logprob_autograd import linear_topk
from w2s_fast.ops.logprob.api import check_ids, check_scale, row_stats, tempered
from w2s_fast.ops.targets import SparseTargets, check_logits

Teacher = SparseTargets | Tensor
# Stands for log 0: far below every log-probability, but 0 times it is 0.
LOG_ZERO = -1e5


class DistillOut(NamedTuple):
    """Result of one call over N rows.

    Attributes:
        loss_sum: 0-d, differentiable, SUM of weighted row divergences.
        count: 0-d normaliser: sum of the weights of the rows that count, or their number.
        metrics: detached 0-d SUMS over the rows that count: ``rows``, their number; ``agreement``
            (the student's top class is the teacher's); ``max_prob``; ``entropy`` (nats, student at
            its temperature).
    """

    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count
    metrics: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Base of the divergences. A new one overrides ``divergence``.

    Attributes:
        temperature: T of the student's softmax, above 0.
        rescale: multiply the loss by T^2, so that the size of gradients does not depend on T
            (Hinton et al., arXiv 1503.02531, Sec. 2).
    """

    temperature: float = 1.0
    rescale: bool = False

    def __init_subclass__(cls) -> None:
        """Check the argument types of every call; see ``checked``."""
        check_methods(cls, ("__call__", "linear"))

    def __post_init__(self) -> None:
        check_scale(self.temperature, 0.0)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return (N,) divergences of log-probabilities (N, K + 1); log 0 is ``LOG_ZERO``."""
        raise TypeError(f"{type(self).__name__} must define divergence")

    def __call__(
        self,
        logits: Tensor,
        teacher: SparseTargets | Tensor,
        *,
        weight: Tensor | None = None,
        softcap: float = 0.0,
    ) -> DistillOut:
        """Compute the sum of the row divergences from the student's logits.

        Args:
            logits: (N, V) fp32, bf16, fp16 or fp64. Gets gradients.
            teacher: top-k probabilities, K classes a row; ``rest=None`` counts as 0. ``ForwardKL``
                also takes dense probabilities (N, V).
            weight: (N,) row weights >= 0; 0 takes a row out.
            softcap: soft-cap of the student's logits; 0 for none.

        Raises:
            W2SError: for shapes, dtypes, devices or ids that do not fit.
        """
        check_scale(self.temperature, softcap)
        return self._from_logits(logits, teacher, weight, softcap)

    def linear(
        self,
        hidden: Tensor,
        head: Tensor,
        teacher: SparseTargets | Tensor,
        *,
        bias: Tensor | None = None,
        weight: Tensor | None = None,
        positions: Tensor | None = None,
        softcap: float = 0.0,
        memory_mib: float | None = None,
        fp32_head_gradient: bool = True,
    ) -> DistillOut:
        """Compute the sum from hidden states and the head; logits are never stored.

        Args:
            hidden: (N, D) or (B, T, D). Gets gradients.
            head, bias, memory_mib, fp32_head_gradient: see ``w2s_fast.linear_topk_logprob``.
            teacher, weight, softcap: see ``__call__``; M rows with ``positions``.
            positions: (M,) rows of the flattened hidden states that have a teacher label; no other
                row is computed.
        """
        check_scale(self.temperature, softcap)
        options = {
            "bias": bias, "positions": positions, "memory_mib": memory_mib,
            "fp32_head_gradient": fp32_head_gradient,
        }  # fmt: skip
        return self._from_head(hidden, head, teacher, weight, softcap, options)

    def _from_logits(
        self, logits: Tensor, teacher: Teacher, weight: Tensor | None, softcap: float
    ) -> DistillOut:
        check_logits(logits)
        teacher = _check_sparse(self, teacher)
        ids = check_ids(teacher.ids, logits.shape[0], logits.shape[1], logits.device)
        t = self.temperature
        student = torch.ops.w2s_fast.topk_logp(tempered(logits, t), ids, softcap / t, True)
        return self._sum(student, ids, teacher, weight)

    def _from_head(
        self,
        hidden: Tensor,
        head: Tensor,
        teacher: Teacher,
        weight: Tensor | None,
        softcap: float,
        options: dict[str, Any],
    ) -> DistillOut:
        """Compute the sum; ``options`` are the other arguments of ``linear``."""
        rows, t = flat_rows(hidden, options["positions"]), self.temperature
        memory_mib, fp32 = options["memory_mib"], options["fp32_head_gradient"]
        x = make_head(rows, head, options["bias"], t, softcap, memory_mib, fp32)
        teacher = _check_sparse(self, teacher)
        ids = check_ids(teacher.ids, x.hidden.shape[0], head.shape[0], hidden.device)
        return self._sum(linear_topk(x, ids, softcap / t, True), ids, teacher, weight)

    def _sum(
        self,
        student: tuple[Tensor, ...],
        ids: Tensor,
        teacher: SparseTargets,
        weight: Tensor | None,
    ) -> DistillOut:
        logp, tail, stats, index = student
        log_q, top = teacher_outcomes(teacher, ids, logp.dtype)
        log_p = torch.where(ids >= 0, logp, LOG_ZERO)
        log_p = torch.cat([log_p, tail.unsqueeze(1)], 1).clamp_min(LOG_ZERO)
        counts = row_weights(tail, weight)
        if weight is not None:  # before any arithmetic: NaN would reach the gradient
            used = (counts != 0).unsqueeze(1)
            log_p, log_q = (torch.where(used, x, LOG_ZERO) for x in (log_p, log_q))
        return self.pack(self.divergence(log_p, log_q), row_stats(stats, index), top, counts)

    def pack(self, rows: Tensor, stats: Any, top: Tensor, counts: Tensor) -> DistillOut:
        """Sum rows times ``counts`` (N,), and metrics.

        ``stats`` has argmax, max_prob and entropy by row, ``top`` is the teacher's class.
        """
        mask = counts != 0
        factor = self.temperature**2 if self.rescale else 1.0
        loss = torch.where(mask, rows * counts, 0.0).sum() * factor
        agreement = stats.argmax == top
        metrics = summed_metrics(mask, agreement, stats.max_prob, stats.entropy)
        return DistillOut(loss, total_weight(counts), metrics)


check_methods(Distillation, ("__call__", "linear"))


def row_weights(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Return (N,) weights in the dtype of the rows; ones without weights.

    Raises:
        W2SError: the weights do not fit, or one is negative.
    """
    if weight is None:
        return torch.ones_like(rows)
    if tuple(weight.shape) != tuple(rows.shape):
        raise W2SError(f"weight has shape {tuple(weight.shape)}; expected {tuple(rows.shape)}")
    check_weight_dtype(weight)
    weight = weight.to(rows.dtype)
    check_weight(weight.detach())
    return weight


def total_weight(weights: Tensor) -> Tensor:
    """Return 0-d: the sum of the row weights (N,), a constant; an error if it overflows."""
    total = weights.detach().sum()
    check_total(total)
    return total


def teacher_outcomes(
    teacher: SparseTargets, ids: Tensor, acc: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (N, K + 1) of the teacher, and its top class (N,)."""
    if tuple(teacher.probs.shape) != tuple(ids.shape):
        raise W2SError(
            f"SparseTargets.probs has shape {tuple(teacher.probs.shape)}; expected "
            f"{tuple(ids.shape)} like ids"
        )
    real = ids >= 0
    q = torch.where(real, teacher.probs.detach().to(acc), 0.0)
    rest = torch.zeros_like(q[:, 0]) if teacher.rest is None else teacher.rest.detach().to(acc)
    if tuple(rest.shape) != (ids.shape[0],):
        raise W2SError(
            f"SparseTargets.rest has shape {tuple(rest.shape)}; expected ({ids.shape[0]},)"
        )
    outcomes = torch.cat([q, rest.unsqueeze(1)], 1)
    top = ids.gather(1, torch.where(real, q, -1.0).argmax(1, keepdim=True))[:, 0]
    return outcomes.log().clamp_min(LOG_ZERO), top


def _check_sparse(loss: Distillation, teacher: Teacher) -> SparseTargets:
    if not isinstance(teacher, SparseTargets):
        raise W2SError(
            f"{type(loss).__name__} takes w2s_fast.SparseTargets, not {type(teacher).__name__}; "
            "w2s_fast.pack_topk makes them from logits or probabilities"
        )
    return teacher


def neg_entropy(probs: Tensor, acc: torch.dtype) -> Tensor:
    """Return (N,) sum q log q with 0 log 0 = 0, a few rows at a time."""
    probs = probs.detach()
    rows = max(1, (4 << 20) // max(1, probs.shape[1]))
    parts = [-torch.special.entr(part.to(acc)).sum(1) for part in probs.split(rows)]
    return torch.cat(parts) if parts else probs.new_zeros(0, dtype=acc)


def check_beta(name: str, beta: float) -> None:
    """Raise ``W2SError`` unless beta lies strictly between 0 and 1."""
    check_number(f"{name}: beta", beta)
    if not 0 < beta < 1:
        raise W2SError(
            f"{name}: beta is {beta}; expected a number in (0, 1). Its limits are forward_kl "
            "(beta to 0) and reverse_kl (beta to 1), divided by beta and 1 - beta"
        )
