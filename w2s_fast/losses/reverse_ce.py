r"""Reverse cross-entropy: the student's prediction is the target, the weak label what is scored.

    L       = -sum_i w_i sum_k p_ik log max(t_ik, floor)  [+ forward CE(z_i, t_i)]
    dL/dz_ik = -w_i p_ik (log t_ik - sum_j p_ij log t_ij)            (first term, t floored)

It is bounded by -log floor a row, so a confident wrong label costs no more than that, and where
the weak label is uniform it teaches nothing. ``forward`` adds ordinary cross-entropy: with
``floor`` e^-4 that is symmetric cross-entropy. The gradient goes through p and not through a
detached target, so this is plain torch, not the fused op.

Sources: arXiv 2505.24313 (weak-to-strong, soft labels); symmetric cross-entropy, Wang et al. 2019
(arXiv 1908.06112), whose log 0 is -4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses._rowwise import RowLoss


@dataclass(frozen=True, kw_only=True)
class ReverseCE(RowLoss):
    """CE(student as target, weak label).

    Attributes:
        floor: weak probabilities below it count as it in the logarithm, in [1e-18, 0.5].
        forward: factor of ordinary cross-entropy with the weak labels.
    """

    floor: float = 1e-4
    forward: float = 0.0

    def __post_init__(self) -> None:
        self._check("floor", 1e-18, 0.5)
        self._check("forward", 0.0)

    def rows(self, log_p: Tensor, q: Tensor) -> Tensor:
        """-sum_k p_k log t_k."""
        loss = -(log_p.exp() * q.clamp_min(self.floor).log()).sum(1)
        return loss - self.forward * (q * log_p).sum(1) if self.forward else loss
