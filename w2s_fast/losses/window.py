r"""Confidence window: learn only from rows on which the student is not yet confident.

    L = sum_i w_i [max_k p_ik < 1/2 + radius] CE(z_i, q_i),     divided by ALL rows

Source: EleutherAI/w2s ``window`` loss. Its "midweak" radius is the training set's median of
|q - 1/2|; compute it once and pass the number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from w2s_fast.losses._base import LossContext
from w2s_fast.losses._one_call import OneCallLoss


@dataclass(frozen=True, kw_only=True)
class Window(OneCallLoss):
    """Cross-entropy on rows whose top probability is below 1/2 + radius.

    Attributes:
        radius: half width of the window around 1/2, in (0, 0.5]; 0.5 keeps every unsaturated row.
    """

    radius: float = 0.15

    def __post_init__(self) -> None:
        self._check_range("radius", 0.0, 0.5)

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """See ``OneCallLoss.terms``; ``count`` includes the rows outside the window."""
        return weak, {"max_confidence": 0.5 + self.radius}
