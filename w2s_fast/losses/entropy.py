r"""Two losses named after entropy, of which one minimises it.

``entropy_min``       L = sum_i w_i [CE(z_i, q_i) + aux H(p_i)],       dH/dz_k = -p_k (log p_k + H)
``entropy_eleuther``  L = sum_i w_i CE(z_i, (1-c) q_i + c sg[p_i]),    dL/dz = (1-c) w_i (p_i - q_i)

The second is EleutherAI's: the student's own soft prediction, detached, takes the place of the
hard one of ``logconf_eleuther``. A prediction is no gradient for itself, so all that is left is
cross-entropy with a step smaller by 1 - c. It is kept because results carry its name. c rises from
0 to aux over the first 100 steps. It runs over the fused op; ``entropy_min`` is plain torch.

Sources: Grandvalet & Bengio 2004 (entropy minimisation); EleutherAI/w2s ``loss.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.losses._base import IGNORE, Loss, LossOut, fused_metrics, kept_rows
from w2s_fast.losses._rowwise import RowLoss
from w2s_fast.losses.logconf import eleuther_ramp
from w2s_fast.ops.weak_loss import weak_loss


@dataclass(frozen=True, kw_only=True)
class EntropyMin(RowLoss):
    """Cross-entropy, and the student made sure of itself.

    Attributes:
        aux: factor of the student's entropy in nats.
    """

    aux: float = 0.1

    def __post_init__(self) -> None:
        self._check("aux", 0.0)

    def rows(self, log_p: Tensor, q: Tensor) -> Tensor:
        """CE + aux H."""
        return -((q + self.aux * log_p.exp()) * log_p).sum(1)


@dataclass(frozen=True, kw_only=True)
class EntropyEleuther(Loss):
    """Cross-entropy with a smaller step, see the top of this file.

    Attributes:
        aux: c after warm-up, in [0, 1].
        warmup_steps: optimizer steps to reach it, see ``LogConfEleuther``.
    """

    aux: float = 0.5
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        self._check("aux", 0.0, 1.0)
        self._check("warmup_steps", 0)

    def coefficient(self, frac: float, step: int | None = None) -> float:
        """aux * min(1, step / warmup_steps)."""
        return eleuther_ramp(self.aux, self.warmup_steps, frac, step)

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
        """See ``Loss.__call__``. CE(z, sg[p]) is H(p), a by-product of the fused op."""
        out = weak_loss(logits, weak, weight=weight, ignore_index=IGNORE, return_stats=True)
        assert out.stats is not None
        own = out.stats.entropy if weight is None else out.stats.entropy * weight.detach()
        own = torch.where(kept_rows(weak, weight), own, 0.0).sum()
        c = self.coefficient(frac, step)
        loss = (1 - c) * out.loss + c * own
        return LossOut(loss, self.count(weak, weight), state, fused_metrics(out, weak, weight))
