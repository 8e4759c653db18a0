r"""Forward Kullback-Leibler divergence KL(q || p): mode-covering in the teacher q.

    L_i = sum_k q_k (log q_k - log p_k) + rest (log rest - log P_rest)

It is the cross-entropy of the weak labels minus the teacher's entropy, so the fused cross-entropy
computes it: from logits with one read and one write, from a head with three GEMMs (6 N V D) and
gradients computed in forward. Source: Hinton et al., arXiv 1503.02531.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses.distillation._base import (
    Distillation,
    DistillOut,
    metrics,
    neg_entropy,
    row_weights,
)
from w2s_fast.ops.chunking import DEFAULT_MEMORY_MIB
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.logprob.api import check_scale
from w2s_fast.ops.results import Stats
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.weak_loss import weak_loss


@dataclass(frozen=True, kw_only=True)
class ForwardKL(Distillation):
    """KL(teacher || student); also accepts dense teachers.

    Attributes:
        temperature, rescale: see ``Distillation``.
    """

    def __call__(
        self,
        logits: Tensor,
        teacher: SparseTargets | Tensor,
        *,
        weight: Tensor | None = None,
        softcap: float = 0.0,
    ) -> DistillOut:
        """See ``Distillation.__call__``; ``teacher`` may be dense probabilities (N, V)."""
        check_scale(self.temperature, softcap)
        _check_teacher(teacher)
        t = self.temperature
        out = weak_loss(
            logits if t == 1 else logits / t,
            teacher,
            weight=weight,
            softcap=softcap / t,
            return_stats=True,
        )
        assert out.stats is not None
        return self._minus_entropy(out.loss, out.stats, teacher, weight)

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
        memory_mib: float = DEFAULT_MEMORY_MIB,
        fp32_head_gradient: bool = True,
    ) -> DistillOut:
        """See ``Distillation.linear``; in 16 bits hidden / T is rounded once more."""
        check_scale(self.temperature, softcap)
        _check_teacher(teacher)
        t = self.temperature
        if t != 1:  # scales N D numbers instead of N V
            hidden, bias = hidden / t, None if bias is None else bias / t
        loss, stats = linear_cross_entropy(
            hidden,
            head,
            teacher,
            bias=bias,
            positions=positions,
            weight=weight,
            softcap=softcap / t,
            reduction="sum",
            memory_mib=memory_mib,
            fp32_head_gradient=fp32_head_gradient,
            return_stats=True,
        )
        assert isinstance(stats, Stats)
        return self._minus_entropy(loss, stats, teacher, weight)

    def _minus_entropy(
        self, loss: Tensor, stats: Stats, teacher: SparseTargets | Tensor, weight: Tensor | None
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
        loss = loss + torch.where(mask, constant * counts, 0.0).sum().to(loss.dtype)
        factor = self.temperature**2 if self.rescale else 1.0
        top = torch.where(stats.agreement, stats.argmax, -1)
        return DistillOut(loss * factor, counts.detach().sum(), metrics(stats, top, mask, acc))


def _check_teacher(teacher: SparseTargets | Tensor) -> None:
    if isinstance(teacher, Tensor) and not teacher.is_floating_point():
        raise W2SError(
            f"teacher has dtype {teacher.dtype}; expected probabilities (N, V) or SparseTargets"
        )
