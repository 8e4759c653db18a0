r"""Generalised Jensen-Shannon divergence between teacher q and student p.

    m = beta q + (1 - beta) p
    L_i = beta KL(q || m) + (1 - beta) KL(p || m)

Source: GKD, Agarwal et al., arXiv 2306.13649, Eq. 1. Bounded by the entropy of (beta, 1 - beta),
even where p or q is 0; L / beta tends to KL(q || p) for beta to 0 and L / (1 - beta) to
KL(p || q) for beta to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.losses.distillation._base import Distillation, check_beta


@dataclass(frozen=True, kw_only=True)
class JSD(Distillation):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    Attributes:
        temperature, rescale: see ``Distillation``.
        beta: weight of the teacher in the mixture, in (0, 1).
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta("JSD", self.beta)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return both terms, computed from logarithms without a division by p or q."""
        b = self.beta
        log_m = torch.logaddexp(log_q + math.log(b), log_p + math.log1p(-b))
        teacher = log_q.exp() * (log_q - log_m)
        student = log_p.exp() * (log_p - log_m)
        return (b * teacher + (1 - b) * student).sum(1)
