"""Zero-shot labels: the untrained student's own predictions.

Source: zero-shot prompting as a baseline, Burns et al. 2023 (arXiv 2312.09390) §5.2.1; calibration
as in Zhao et al. 2021 (arXiv 2102.09690), see ``_balance``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._base import Method, Targets, choice
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan

CALIBRATIONS = ("none", "weak")


@dataclass(frozen=True, kw_only=True)
class Elicit(Method):
    """Replace the labels by the untrained student's probabilities of the class words.

    Attributes:
        calibrate: ``weak`` removes the bias for some words: the mean probability of every class
            becomes that of the weak labels, which are used for nothing else. ``none`` leaves the
            probabilities unchanged.
    """

    calibrate: str = choice("weak", CALIBRATIONS)

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.zero_shot, weak=labels, prior=plan.prior())

    def zero_shot(self, weak: Targets, prior: Targets, seed: int) -> Targets:
        """Return the prior's calibrated probabilities (N, K), with the row weights of ``weak``."""
        return replace(weak, probs=calibrated(prior.probs, weak, self.calibrate))


def calibrated(probs: np.ndarray, weak: Targets, how: str) -> np.ndarray:
    """Return calibrated probabilities (N, K) float32, see ``Elicit.calibrate``."""
    if how == "weak":
        probs = matched(probs, balance_of(weak.probs, weak.used), weak.used)
    return probs.astype(np.float32)
