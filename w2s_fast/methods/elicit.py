"""The student teaches itself: its own answers before any training are the labels.

Source: zero-shot prompting as a baseline, Burns et al. 2023 (arXiv 2312.09390) §5.2.1; calibration
as in Zhao et al. 2021 (arXiv 2102.09690), see ``_balance``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._plan import Node, Plan

CALIBRATIONS = ("none", "weak")


@dataclass(frozen=True, kw_only=True)
class Elicit(Method):
    """The untrained student's probabilities of the words of the classes take the labels' place.

    Attributes:
        calibrate: ``weak`` takes out the bias for some words: the mean probability of every class
            becomes that of the weak labels, which is all that is used of them. ``none`` uses
            the answers as they are.
    """

    calibrate: str = "weak"

    def __post_init__(self) -> None:
        self._one_of("calibrate", CALIBRATIONS)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        return plan.apply(self.answers, weak=labels, prior=plan.prior())

    def answers(self, weak: Targets, prior: Targets, seed: int) -> Targets:
        """The prior's probabilities (N, K), calibrated; row weights are those of the labels."""
        return replace(weak, probs=calibrated(prior.probs, weak, self.calibrate))


def calibrated(probs: np.ndarray, weak: Targets, how: str) -> np.ndarray:
    """(N, K) float32, see ``Elicit.calibrate``."""
    if how == "weak":
        probs = matched(probs, balance_of(weak.probs, weak.kept), weak.kept)
    return probs.astype(np.float32)
