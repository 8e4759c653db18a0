r"""Reverse Kullback-Leibler divergence KL(p || t): mode-seeking in the weak label t.

    L       = sum_i w_i sum_k p_ik (log p_ik - log max(t_ik, floor))
    dL/dz_ik = w_i p_ik (log p_ik - log t_ik - KL_i),          KL_i the row's divergence, t floored

It is reverse cross-entropy minus the student's entropy. Its minimum is p = t, whereas reverse
cross-entropy is smallest with all mass on the label's top class. Plain torch, not the fused op.

Sources: arXiv 2502.11107 for weak-to-strong generalization; Gu et al. 2023 (arXiv 2306.08543) for
language models, for which ``w2s_fast.losses.distillation`` has its own version.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses._rowwise import RowLoss, finite


@dataclass(frozen=True, kw_only=True)
class ReverseKL(RowLoss):
    """KL(student || weak label).

    Attributes:
        floor: lower bound of the weak probabilities in the logarithm, in [1e-18, 0.5].
    """

    floor: float = 1e-4

    def __post_init__(self) -> None:
        self._check_range("floor", 1e-18, 0.5)

    def row_losses(self, log_p: Tensor, q: Tensor) -> Tensor:
        """Return sum_k p_k (log p_k - log t_k)."""
        return (log_p.exp() * (finite(log_p) - q.clamp_min(self.floor).log())).sum(1)
