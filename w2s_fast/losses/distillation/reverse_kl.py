r"""Reverse Kullback-Leibler divergence KL(p || q): mode-seeking in the teacher q.

    "tail"           sum_k p_k (log p_k - log q_k) + P_rest (log P_rest - log rest)
    "renormalised"   sum_k p'_k (log p'_k - log q'_k),   p' = p / sum_k p_k, q' the same
    "truncated"      sum_k p_k (log p_k - log q_k)

The classes are those of the targets. With the student's own most likely ones
(``w2s_fast.linear_topk_ids``) and the teacher's probabilities of them it is the divergence of
on-policy distillation. Sources: Gu et al., arXiv 2306.08543; over the student's top k:
arXiv 2604.13016 (renormalised) and verl, whose truncated sum is no divergence: it is smallest, and
negative, where the student leaves these classes. An outcome with q = 0 (for example the remaining
mass of targets without one) would have infinite loss: ``floor`` bounds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses.distillation._base import LOG_ZERO, Distillation
from w2s_fast.ops.arguments import check_number

SUPPORTS = ("tail", "renormalised", "truncated")


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Distillation):
    """KL(student || teacher).

    Attributes:
        temperature, rescale: see ``Distillation``.
        floor: lower bound of the teacher probabilities in the logarithm, in (0, 1).
        support: what stands for the classes outside of the top k: one outcome (``tail``), or
            nothing (``renormalised``, ``truncated``).
    """

    floor: float = 1e-8
    support: str = "tail"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ReverseKL: floor", self.floor)
        if not 0 < self.floor < 1:
            raise W2SError(f"ReverseKL: floor is {self.floor}; expected a number in (0, 1)")
        if self.support not in SUPPORTS:
            raise W2SError(f"ReverseKL: support is {self.support!r}; expected one of {SUPPORTS}")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return sum p (log p - log q) over the outcomes of the support."""
        log_q = log_q.clamp_min(math.log(self.floor))
        if self.support == "tail":
            return (log_p.exp() * (log_p - log_q)).sum(1)
        log_p, log_q = log_p[:, :-1], log_q[:, :-1]
        if self.support == "renormalised":
            listed = log_p > LOG_ZERO  # neither padding nor impossible
            log_q = torch.where(listed, log_q, LOG_ZERO).log_softmax(1)
            log_p = log_p.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(1)
