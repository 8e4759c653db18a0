r"""Identity preference optimisation: regress the log-ratio margin to a finite target.

    h = [log pi(y1) - log ref(y1)] / n1 - [log pi(y2) - log ref(y2)] / n2
    l(y1 over y2) = (h - 1 / (2 tau))^2

n are the lengths: the authors' own implementation uses log-probabilities per token, because sums
that grow with length have no common scale for a fixed margin. ``average=False`` is the formula of
the paper, n = 1. Source: arXiv 2310.12036, Eq. 17. With a soft q the minimum lies at
h = (2q - 1) / (2 tau).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses.preference._base import Answers, Preference


@dataclass(frozen=True, kw_only=True)
class IPO(Preference):
    """Squared distance of the log-ratio margin to 1 / (2 tau).

    Attributes:
        tau: regularisation, above 0 (``beta`` in other libraries).
        average: use log-ratios per token (needs lengths), not of whole answers.
    """

    tau: float = 0.1
    average: bool = True

    def __post_init__(self) -> None:
        self._check_range("tau", 0.0, open_low=True)

    def reward(self, answers: Answers) -> Tensor:
        """Return the log-ratio, per token with ``average``."""
        return (answers.per_token() if self.average else answers).log_ratio()

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return (h - 1 / (2 tau))^2."""
        return (self.reward(better) - self.reward(worse) - 0.5 / self.tau).square()
