r"""Two losses named after entropy; only ``entropy_min`` minimises it.

``entropy_min``       L = sum_i w_i [CE(z_i, q_i) + a H(p_i)],         dH/dz_k = -p_k (log p_k + H)
``entropy_eleuther``  L = sum_i w_i CE(z_i, (1-c) q_i + c sg[p_i]),    dL/dz = (1-c) w_i (p_i - q_i)

a is ``aux_coef``. The second loss is EleutherAI's: the student's own soft prediction, detached,
replaces the hard one of ``logconf_eleuther``. The gradient of CE(z, sg[p]) is zero, so what
remains is cross-entropy scaled by 1 - c. It is provided because published results carry its name.
c rises from 0 to ``aux_coef`` over the first 100 steps. It uses the fused op; ``entropy_min`` is
plain torch.

Sources: Grandvalet & Bengio 2004 (entropy minimisation); EleutherAI/w2s ``loss.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.losses._base import IGNORE, Loss, LossContext, LossOut, fused_metrics, row_mask
from w2s_fast.losses._rowwise import RowLoss, cross_entropy_rows, finite
from w2s_fast.losses.logconf import eleuther_ramp
from w2s_fast.ops.weak_loss import weak_loss


@dataclass(frozen=True, kw_only=True)
class EntropyMin(RowLoss):
    """Cross-entropy plus a penalty on the entropy of the student's prediction.

    Attributes:
        aux_coef: weight of the student's entropy in nats, at least 0.
    """

    aux_coef: float = 0.1

    def __post_init__(self) -> None:
        self._check_range("aux_coef", 0.0)

    def row_losses(self, log_p: Tensor, q: Tensor) -> Tensor:
        """Return CE + aux_coef H."""
        entropy = -(log_p.exp() * finite(log_p)).sum(1)
        return cross_entropy_rows(log_p, q) + self.aux_coef * entropy


@dataclass(frozen=True, kw_only=True)
class EntropyEleuther(Loss):
    """Cross-entropy scaled by 1 - c; see the module.

    Attributes:
        aux_coef: c after warm-up, in [0, 1].
        warmup_steps: optimizer steps to reach it; see ``LogConfEleuther``.
    """

    aux_coef: float = 0.5
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        self._check_range("aux_coef", 0.0, 1.0)
        self._check_range("warmup_steps", 0)

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        """Return aux_coef * min(1, step / warmup_steps)."""
        return eleuther_ramp(self.aux_coef, self.warmup_steps, step_frac, step)

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``. CE(z, sg[p]) is H(p), which the fused op returns as a statistic."""
        weight = ctx.weight
        out = weak_loss(logits, weak, weight=weight, ignore_index=IGNORE, return_stats=True)
        assert out.stats is not None
        own = out.stats.entropy if weight is None else out.stats.entropy * weight.detach()
        own = torch.where(row_mask(weak, weight), own, 0.0).sum()
        c = self.coefficient(ctx.step_frac, ctx.step)
        # A coefficient of 1 removes a weak label that is impossible (+inf), but no NaN.
        weak_part = torch.where(out.loss.isinf(), 0.0, out.loss) if c == 1 else out.loss
        loss = (1 - c) * weak_part + c * own
        return LossOut(loss, self.count(weak, weight), ctx.state, fused_metrics(out, weak, weight))
