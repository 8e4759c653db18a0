r"""Generalised cross-entropy: between cross-entropy (q to 0) and absolute error (q = 1).

    L      = sum_i w_i sum_k t_ik (1 - p_ik^q) / q,               t_i the weak label, hard or soft
    dL/dz_i = w_i (p_i sum_k T_ik - T_i),   T_ik = t_ik p_ik^q

The gradient is that of cross-entropy with every label class weighted by p^q: labels the student
finds unlikely, among them the wrong ones, contribute less. With hard labels this is a detached row
weight p_y^q, so the fused op computes it exactly; soft labels use plain torch. The source defines
the loss for hard labels; soft labels take the mean over their classes, as above.

Source: Zhang & Sabuncu 2018 (arXiv 1805.07836), Eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import (
    IGNORE,
    LossContext,
    LossOut,
    fused_metrics,
    row_mask,
)
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
        self._check_range("q", 0.0, 1.0)
        if self.q == 0:
            raise W2SError("GCE: q is 0, which is cross-entropy; use loss 'xent' or q above 0")

    def row_losses(self, log_p: Tensor, q: Tensor) -> Tensor:
        """Return sum_k t_k (1 - p_k^q) / q, accurate for small q."""
        return -(q * torch.expm1(self.q * log_p)).sum(1) / self.q

    def hard_forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``RowLoss.hard_forward``."""
        weight = ctx.weight
        mask = row_mask(weak, weight)
        out = weak_loss(
            logits.detach(), weak, weight=weight, ignore_index=IGNORE, return_stats=True
        )
        assert out.stats is not None
        power = -self.q * out.stats.loss  # not the logarithm of p, which underflows
        ones = torch.ones_like(power) if weight is None else weight.detach().to(power.dtype)
        # A NaN row keeps weight 1: its logits make the gradient NaN.
        scaled_weight = torch.where(mask, ones * power.nan_to_num(0.0).exp(), 0.0)
        scaled = weak_loss(logits, weak, weight=scaled_weight, ignore_index=IGNORE).loss
        value = torch.where(mask, -ones * torch.expm1(power) / self.q, 0.0).sum()
        return LossOut(
            scaled + (value - scaled.detach()),  # the value of L with the gradient of ``scaled``
            self.count(weak, weight),
            ctx.state,
            fused_metrics(out, weak, weight),
        )
