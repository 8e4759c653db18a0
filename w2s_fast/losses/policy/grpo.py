r"""Group relative policy optimisation: the clipped surrogate, averaged within a sequence first.

    GRPO     c_t = w_t / n_b,          normaliser: number of sequences
    DrGRPO   c_t = w_t / max_length,   normaliser: number of sequences

n_b is the number of tokens of sequence b that count. Advantages are those of ``group_advantages``.
Sources: Shao et al., arXiv 2402.03300, Eq. 3; without the bias towards long wrong answers:
Liu et al., arXiv 2503.20783, Sec. 3.2, which also leaves advantages unscaled.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses.policy._base import Tokens, sequence_lengths
from w2s_fast.losses.policy.ppo import PPO


@dataclass(frozen=True, kw_only=True)
class GRPO(PPO):
    """Clipped surrogate; every sequence that has a token counts alike.

    Attributes:
        clip_low, clip_high, max_ratio, kl_coef, entropy_coef: see ``PPO``.
    """

    def normalise(self, t: Tokens) -> tuple[Tensor, Tensor]:
        """Divide by the number of tokens of the sequence; count weighted sequences."""
        factor = t.weight / sequence_lengths(t, type(self).__name__)
        return factor, factor.sum()


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    """GRPO with every token divided by one constant.

    Attributes:
        max_length: the constant: tokens that a completion may have, at least 1.
        clip_low, clip_high, max_ratio, kl_coef, entropy_coef: see ``PPO``.
    """

    max_length: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("max_length", 1)

    def normalise(self, t: Tokens) -> tuple[Tensor, Tensor]:
        """Divide by ``max_length``; count weighted sequences."""
        _, count = super().normalise(t)
        if t.mask.shape[1] > self.max_length:
            raise W2SError(
                f"DrGRPO has max_length={self.max_length}, logp has T = {t.mask.shape[1]} tokens "
                "a sequence; expected no more than max_length"
            )
        return t.weight / self.max_length, count
