r"""Group sequence policy optimisation: one ratio a sequence.

    log r_b = (1 / n_b) sum_t (log pi(t) - log pi_old(t))

and every token of sequence b has this ratio. Source: Zheng et al., arXiv 2507.18071, Eq. 5 to 7;
the defaults of the clip are those of its Sec. 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses.policy._base import Tokens, sequence_lengths
from w2s_fast.losses.policy.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class GSPO(GRPO):
    """GRPO with the length-normalised ratio of the sequence.

    Attributes:
        clip_low, clip_high, max_ratio, kl_coef, entropy_coef: see ``PPO``.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def log_ratio(self, t: Tokens) -> Tensor:
        """Return the mean over the tokens that count, at every token."""
        length = sequence_lengths(t, "GSPO")
        return ((t.logp - t.old).sum(1, keepdim=True) / length).expand_as(t.logp)
