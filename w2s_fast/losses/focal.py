r"""Focal weighting: rows the student already answers like the weak label count less.

    L = sum_i w_i (1 - p_ic)^gamma CE(z_i, q_i),      c the weak label's top class, factor detached

The factor is a weight, not part of the function that is differentiated (Lin et al. differentiate
it). The normaliser is that of the rows, not of the factors.

Source: Lin et al. 2017 (arXiv 1708.02002), used as a weight as in KaLM-Embedding-V2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses._base import Loss, LossOut


@dataclass(frozen=True, kw_only=True)
class Focal(Loss):
    """Cross-entropy with a detached focal weight.

    Attributes:
        gamma: exponent, at least 0; 0 is plain cross-entropy.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        self._check("gamma", 0.0)

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
        return self._sum(logits, weak, weight, state, focal_gamma=self.gamma)
