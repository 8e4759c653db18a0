r"""Clipped importance-sampling policy optimisation: the ratio is a weight without a gradient.

    S = clip(r, 1 - clip_low, 1 + clip_high) A log pi(t),    no gradient through the clipped ratio

Every token keeps a gradient, also where its ratio is clipped. Source: MiniMax-M1, arXiv 2506.13585,
Eq. 4 and 5. Its authors do not bound the ratio from below (``clip_low=1``).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses.policy._base import PolicyLoss, Tokens


@dataclass(frozen=True, kw_only=True)
class CISPO(PolicyLoss):
    """REINFORCE with clipped importance weights; the normaliser is the number of tokens.

    Attributes:
        clip_low: how far below 1 a weight may lie, in [0, 1].
        clip_high: how far above 1 a weight may lie, at least 0.
        kl_coef, entropy_coef: see ``PolicyLoss``.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("clip_low", 0.0, 1.0)
        self._check_range("clip_high", 0.0)

    def surrogate(self, ratio: Tensor, t: Tokens) -> Tensor:
        """Return weight times advantage times log-probability."""
        weight = ratio.detach().clamp(1 - self.clip_low, 1 + self.clip_high)
        return weight * t.advantage * t.logp

    def is_clipped(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return where the weight is a bound; such tokens keep their gradient."""
        return (ratio < 1 - self.clip_low) | (ratio > 1 + self.clip_high)
