r"""Proximal policy optimisation: a clipped ratio, averaged over all tokens.

    S = min( min(r, max_ratio) A,  clip(r, 1 - clip_low, 1 + clip_high) A )

Source: Schulman et al., arXiv 1707.06347, Eq. 7; two different clips: DAPO, arXiv 2503.14476,
Eq. 10; ``max_ratio`` bounds the loss of tokens with A < 0 (dual clip, Ye et al., arXiv 1912.09729;
two-sided clipping, arXiv 2505.07291). The sum over tokens divided by their number is the
loss that is called bnpo or dapo where advantages are those of a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.losses.policy._base import PolicyLoss, Tokens


@dataclass(frozen=True, kw_only=True)
class PPO(PolicyLoss):
    """Clipped surrogate per token; the normaliser is the number of tokens.

    Attributes:
        clip_low: how far below 1 a ratio counts, in [0, 1].
        clip_high: how far above 1 a ratio counts, at least 0; infinity for no clip.
        max_ratio: largest ratio of a token with a negative advantage, at least 1 + clip_high;
            infinity for none.
        kl_coef, entropy_coef: see ``PolicyLoss``.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    max_ratio: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("clip_low", 0.0, 1.0)
        self._check_range("clip_high", 0.0)
        self._check_range("max_ratio", 1 + self.clip_high)

    def surrogate(self, ratio: Tensor, t: Tokens) -> Tensor:
        """Return the smaller of the bounded and the clipped objective."""
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        return torch.minimum(ratio.clamp_max(self.max_ratio) * t.advantage, clipped * t.advantage)

    def is_clipped(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return where the ratio has left the clip in the direction of its advantage."""
        low = (ratio < 1 - self.clip_low) | (ratio > self.max_ratio)
        high = ratio > 1 + self.clip_high
        return (low & (advantage < 0)) | (high & (advantage > 0))
