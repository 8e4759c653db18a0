r"""Reverse Kullback-Leibler divergence KL(p || q): mode-seeking in the teacher q.

    L_i = sum_k p_k (log p_k - log q_k) + P_rest (log P_rest - log rest)

Source: Gu et al., arXiv 2306.08543. An outcome with q = 0 (for example the remaining mass of
targets without one) would have infinite loss: ``floor`` bounds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses.distillation._base import Distillation
from w2s_fast.ops.arguments import check_number


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Distillation):
    """KL(student || teacher).

    Attributes:
        temperature, rescale: see ``Distillation``.
        floor: lower bound of the teacher probabilities in the logarithm, in (0, 1).
    """

    floor: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ReverseKL: floor", self.floor)
        if not 0 < self.floor < 1:
            raise W2SError(f"ReverseKL: floor is {self.floor}; expected a number in (0, 1)")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return sum p (log p - log q)."""
        return (log_p.exp() * (log_p - log_q.clamp_min(math.log(self.floor)))).sum(1)
