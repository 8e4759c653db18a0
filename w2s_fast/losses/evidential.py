r"""Evidential loss: the student predicts a Dirichlet over class probabilities, not one of them.

    a_ik = 1 + exp(z_ik),   S_i = sum_k a_ik                    evidence exp(z), flat prior
    t_i  = (1 - c) q_i + c onehot(argmax z_i),   c = aux_coef min(1, step_frac / warmup_frac)
    L    = sum_i w_i sum_k t_ik [ log S_i - log a_ik + kl step_frac KL(Dir(b_i^k) || Dir(1)) ]
    b_i^k = a_i with a_ik replaced by 1                         the evidence for other classes

log S - log a_k is -log of the probability of class k under the Dirichlet. A soft label counts as
observations of each class, so the mean of several weak models' labels gives the mean of their
losses. The divergence takes evidence for classes that no label supports back to the prior, and
grows over the training. exp is the evidence because softmax(z), which predictions are made of, is
then the share of each class in it; 1 - K / S is the confidence.

Source: Cui et al. 2024, Bayesian WeakS-to-Strong (arXiv 2406.03199), Eq. 4 and 5: labels of several
weak models, and the student's own class. The loss of a row is the evidential one of Sensoy et al.
2018 (arXiv 1806.01768), with ReLU as evidence. The warm-up of c is this package's own: early
predictions of a new head are arbitrary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast.losses._base import LossContext
from w2s_fast.losses._rowwise import RowLoss

_LARGEST = 20.0  # logits from which on the divergence has no gradient: exp of them is its evidence


@dataclass(frozen=True, kw_only=True)
class Evidential(RowLoss):
    """Negative log-likelihood under a Dirichlet, with a divergence of unsupported evidence.

    Attributes:
        kl: weight of the divergence at the end of the training, at least 0.
        aux_coef: coefficient of the student's own class after warm-up, in [0, 1].
        warmup_frac: fraction of the optimizer steps over which that coefficient rises from 0.
    """

    kl: float = 1.0
    aux_coef: float = 0.5
    warmup_frac: float = 0.2

    def __post_init__(self) -> None:
        self._check_range("kl", 0.0)
        self._check_range("aux_coef", 0.0, 1.0)
        self._check_range("warmup_frac", 0.0, 1.0)

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        """Return aux_coef * min(1, step_frac / warmup_frac); aux_coef without a warm-up."""
        if step_frac >= self.warmup_frac:
            return self.aux_coef
        return self.aux_coef * step_frac / self.warmup_frac

    def logit_losses(self, z: Tensor, log_p: Tensor, q: Tensor, ctx: LossContext) -> Tensor:
        """Return (n,) losses of logits and soft labels (n, C)."""
        classes = torch.arange(z.shape[1], device=z.device)  # one_hot is no operation of vmap
        own = (z.argmax(1, keepdim=True) == classes).to(q.dtype)
        c = self.coefficient(ctx.step_frac, ctx.step)
        target = (1 - c) * q + c * own
        prior = z.new_full((len(z), 1), math.log(z.shape[1]))
        total = torch.cat([z, prior], 1).logsumexp(1, keepdim=True)  # log S
        loss = (target * (total - F.softplus(z))).sum(1)
        if weight := self.kl * ctx.step_frac:
            loss = loss + weight * (target * _unsupported(z)).sum(1).to(loss.dtype)
        return loss


def _unsupported(z: Tensor) -> Tensor:
    """Return (n, C) float64: KL(Dir(b^k) || Dir(1)) for every class k, see the module.

    In float64 because it is a small difference of large numbers where there is much evidence.
    """
    e = z.double().clamp_max(_LARGEST).exp()
    classes = z.shape[1]
    others = e.sum(1, keepdim=True) - e
    sizes = torch.lgamma(1 + e)
    gains = e * torch.special.digamma(1 + e)
    log_beta = torch.lgamma(classes + others) - (sizes.sum(1, keepdim=True) - sizes)
    mean = gains.sum(1, keepdim=True) - gains - others * torch.special.digamma(classes + others)
    return log_beta - math.lgamma(classes) + mean
