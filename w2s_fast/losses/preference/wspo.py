r"""Weak-to-strong preference optimisation: learn the log-ratio of an aligned weak model.

    l(y) = ( gamma r(y) - r_weak(y) )^2
    r(y) = [log pi(y|x) - log ref(y|x)] / n,    r_weak the same of the weak model and its reference

The policy learns how alignment changed the weak model. Source: arXiv 2410.18640, whose released
code trains on the preferred answers alone, as q = 1 does here. It squares the difference of every
token and averages; here the difference of the means over an answer's n tokens is squared, so two
numbers an answer are enough. ``average=False`` takes sums, n = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses.preference._base import Answers, Preference


@dataclass(frozen=True, kw_only=True)
class WSPO(Preference):
    """Squared difference of the policy's log-ratio, times gamma, and the weak model's.

    Attributes:
        gamma: factor of the policy's log-ratio, above 0; a smaller one moves the policy further
            from its reference than the weak model moved.
        average: use log-ratios per token (needs lengths), not of whole answers.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference", "target")

    gamma: float = 0.1
    average: bool = True

    def __post_init__(self) -> None:
        self._check_range("gamma", 0.0, open_low=True)

    def reward(self, answers: Answers) -> Tensor:
        """Return gamma times the log-ratio."""
        return self.gamma * (answers.per_token() if self.average else answers).log_ratio()

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return (gamma r(better) - r_weak(better))^2; the other answer does not enter."""
        if better.target is None:
            raise W2SError("WSPO needs the weak model's log-ratio; pass Answers(target=...)")
        target = (better.per_token() if self.average else better).target
        return (self.reward(better) - target).square()  # type: ignore[operator]  # not None
