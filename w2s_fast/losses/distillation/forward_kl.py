r"""Forward Kullback-Leibler divergence KL(q || p): mode-covering in the teacher q.

    L_i = sum_k q_k (log q_k - log p_k) + rest (log rest - log P_rest)

It is the cross-entropy of the weak labels minus the teacher's entropy, so the fused cross-entropy
computes it: from logits with one read and one write, from a head with three GEMMs (6 N V D) and
gradients computed in forward. Source: Hinton et al., arXiv 1503.02531.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import summed_metrics
from w2s_fast.losses.distillation._base import (
    Distillation,
    DistillOut,
    Teacher,
    neg_entropy,
    row_weights,
    total_weight,
)
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.logprob.api import tempered
from w2s_fast.ops.results import Stats
from w2s_fast.ops.targets import SparseTargets, check_logits
from w2s_fast.ops.weak_loss import weak_loss


@dataclass(frozen=True, kw_only=True)
class ForwardKL(Distillation):
    """KL(teacher || student); also accepts dense teachers.

    Attributes:
        temperature, rescale: see ``Distillation``.
    """

    def _from_logits(
        self, logits: Tensor, teacher: Teacher, weight: Tensor | None, softcap: float
    ) -> DistillOut:
        _check_teacher(teacher)
        check_logits(logits)
        t, scaled = self.temperature, tempered(logits, self.temperature)
        out = weak_loss(scaled, teacher, weight=weight, softcap=softcap / t, return_stats=True)
        assert out.stats is not None
        return self._minus_entropy(out.loss, out.stats, teacher, weight)

    def _from_head(
        self,
        hidden: Tensor,
        head: Tensor,
        teacher: Teacher,
        weight: Tensor | None,
        softcap: float,
        options: dict[str, Any],
    ) -> DistillOut:
        _check_teacher(teacher)
        t, bias = self.temperature, options["bias"]
        if t != 1:  # scales N D numbers instead of N V; in 16 bits hidden / T is rounded once more
            hidden, bias = hidden / t, None if bias is None else bias / t
        options = {**options, "bias": bias, "softcap": softcap / t, "weight": weight}
        loss, stats = linear_cross_entropy(
            hidden, head, teacher, reduction="sum", return_stats=True, **options
        )
        assert isinstance(stats, Stats)
        return self._minus_entropy(loss, stats, teacher, weight)

    def _minus_entropy(
        self, loss: Tensor, stats: Stats, teacher: Teacher, weight: Tensor | None
    ) -> DistillOut:
        acc = stats.entropy.dtype
        if isinstance(teacher, SparseTargets):
            q = torch.where(teacher.ids >= 0, teacher.probs, 0.0)
            constant = neg_entropy(q, acc)
            if teacher.rest is not None:
                constant = constant + neg_entropy(teacher.rest.unsqueeze(1), acc)
        else:
            constant = neg_entropy(teacher, acc)
        counts = row_weights(constant, weight)
        mask = counts != 0
        # Not detached: the weights that multiply the entropy may be learned.
        loss = loss + (torch.where(mask, constant, 0.0) * counts).sum().to(loss.dtype)
        factor = self.temperature**2 if self.rescale else 1.0
        metrics = summed_metrics(mask, stats.agreement, stats.max_prob, stats.entropy)
        return DistillOut(loss * factor, total_weight(counts), metrics)


def _check_teacher(teacher: Teacher) -> None:
    if isinstance(teacher, Tensor) and not teacher.is_floating_point():
        raise W2SError(
            f"teacher has dtype {teacher.dtype}; expected probabilities (N, V) or SparseTargets"
        )
