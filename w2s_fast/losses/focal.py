r"""Focal weighting: rows on which the student already predicts the weak class count less.

    L = sum_i w_i (1 - p_ic)^gamma CE(z_i, q_i),      c the weak label's top class, factor detached

The factor is a detached weight (Lin et al. differentiate through it). The normaliser sums the row
weights, not the factors.

Source: Lin et al. 2017 (arXiv 1708.02002), used as a weight as in KaLM-Embedding-V2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from w2s_fast.losses._base import LossContext
from w2s_fast.losses._one_call import OneCallLoss


@dataclass(frozen=True, kw_only=True)
class Focal(OneCallLoss):
    """Cross-entropy with a detached focal weight.

    Attributes:
        gamma: exponent, at least 0; 0 is plain cross-entropy.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        self._check_range("gamma", 0.0)

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """See ``OneCallLoss.terms``."""
        return weak, {"focal_gamma": self.gamma}
