r"""Generalised cross-entropy: between cross-entropy (q to 0) and absolute error (q = 1).

    L      = sum_i w_i sum_k t_ik (1 - p_ik^q) / q,               t_i the weak label, hard or soft
    dL/dz_i = w_i (p_i sum_k T_ik - T_i),   T_ik = t_ik p_ik^q

The gradient is that of cross-entropy with every label class weighted by p^q: labels the student
finds unlikely, the wrong ones among them, pull less. With hard labels that is a detached row
weight p_y^q, so the fused op computes it exactly; soft labels go through plain torch. For soft
labels the mean over the label's classes is taken, as above; the source has hard ones.

Source: Zhang & Sabuncu 2018 (arXiv 1805.07836), Eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import IGNORE, LossOut, check_labels, fused_metrics, kept_rows
from w2s_fast.losses._rowwise import RowLoss
from w2s_fast.ops.weak_loss import weak_loss


@dataclass(frozen=True, kw_only=True)
class GCE(RowLoss):
    """Cross-entropy that is bounded by 1 / q.

    Attributes:
        q: in (0, 1]; near 0 it is cross-entropy, 1 is half the absolute error.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        self._check("q", 0.0, 1.0)
        if self.q == 0:
            raise W2SError("GCE: q is 0, which is cross-entropy; use loss 'xent' or q above 0")

    def rows(self, log_p: Tensor, q: Tensor) -> Tensor:
        """sum_k t_k (1 - p_k^q) / q, exact for small q."""
        return -(q * torch.expm1(self.q * log_p)).sum(1) / self.q

    def __call__(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        frac: float = 0.0,
        step: int | None = None,
        threshold: Tensor | None = None,
        state: Tensor | None = None,
    ) -> LossOut:
        """See ``Loss.__call__``."""
        check_labels(weak)
        if weak.is_floating_point():
            return super().__call__(logits, weak, weight=weight, state=state)
        kept = kept_rows(weak, weight)
        seen = weak_loss(
            logits.detach(), weak, weight=weight, ignore_index=IGNORE, return_stats=True
        )
        assert seen.stats is not None
        power = self.q * seen.stats.chosen_prob.log()
        ones = torch.ones_like(power) if weight is None else weight.detach().to(power.dtype)
        pull = torch.where(kept, ones * power.exp(), 0.0)
        pulled = weak_loss(logits, weak, weight=pull, ignore_index=IGNORE).loss
        value = torch.where(kept, -ones * torch.expm1(power) / self.q, 0.0).sum()
        return LossOut(
            pulled + (value - pulled.detach()),  # the value of L, the gradient of both
            self.count(weak, weight),
            state,
            fused_metrics(seen, weak, weight),
        )
