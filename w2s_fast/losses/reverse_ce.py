r"""Reverse cross-entropy: the student's prediction is the target, the weak label is scored.

    L       = -sum_i w_i sum_k p_ik log max(t_ik, floor)  [+ forward_coef CE(z_i, t_i)]
    dL/dz_ik = -w_i p_ik (log t_ik - sum_j p_ij log t_ij)            (first term, t floored)

The first term is bounded by -log floor a row, so a confident wrong label costs no more than that; a
uniform weak label has gradient 0. ``forward_coef`` adds ordinary cross-entropy: with ``floor`` e^-4
that is symmetric cross-entropy. The gradient goes through p, so this is plain torch, not the fused
op.

Sources: arXiv 2505.24313 (weak-to-strong, soft labels); symmetric cross-entropy, Wang et al. 2019
(arXiv 1908.06112), whose log 0 is -4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses._rowwise import RowLoss, cross_entropy_rows


@dataclass(frozen=True, kw_only=True)
class ReverseCE(RowLoss):
    """Cross-entropy with the student as target and the weak label as prediction.

    Attributes:
        floor: lower bound of the weak probabilities in the logarithm, in [1e-18, 0.5].
        forward_coef: weight of ordinary cross-entropy with the weak labels.
    """

    floor: float = 1e-4
    forward_coef: float = 0.0

    def __post_init__(self) -> None:
        self._check_range("floor", 1e-18, 0.5)
        self._check_range("forward_coef", 0.0)

    def row_losses(self, log_p: Tensor, q: Tensor) -> Tensor:
        """Return -sum_k p_k log t_k, plus forward_coef times cross-entropy."""
        loss = -(log_p.exp() * q.clamp_min(self.floor).log()).sum(1)
        if not self.forward_coef:
            return loss
        return loss + self.forward_coef * cross_entropy_rows(log_p, q)
