r"""Label smoothing: cross-entropy with the weak label mixed with the uniform distribution.

    L = sum_i w_i CE(z_i, (1-e) q_i + e m_i / C),        m_i = sum_k q_ik

Source: Szegedy et al. 2016 (arXiv 1512.00567), Sec. 7; ``label_smoothing`` of
``torch.nn.functional.cross_entropy``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from w2s_fast.losses._base import LossContext
from w2s_fast.losses._one_call import OneCallLoss


@dataclass(frozen=True, kw_only=True)
class Smoothing(OneCallLoss):
    """Cross-entropy with smoothed weak labels.

    Attributes:
        epsilon: mass distributed evenly over all classes, in [0, 0.999].
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        self._check_range("epsilon", 0.0, 0.999)

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """See ``OneCallLoss.terms``."""
        return weak, {"smoothing": self.epsilon}
