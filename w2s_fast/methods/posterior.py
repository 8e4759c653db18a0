"""Posterior of the true class, given the untrained student's belief and the weak label.

EM estimates the confusion matrix of the weak labels (equations: ``_channel``). The two sources
should err independently given the class, so the belief is the untrained student's, not that of a
student trained on the same labels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.errors import DataWarning
from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._base import Method, Targets, choice, number
from w2s_fast.methods._channel import estimate
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods.ccs import CCS

SOURCES = ("answers", "ccs")
BALANCES = ("own", "weak", "em")


@dataclass(frozen=True, kw_only=True)
class Posterior(Method):
    """Replace the labels by posterior class probabilities.

    Attributes:
        source: source of the beliefs: the untrained student's zero-shot ``answers``, or its truth
            direction, method ``ccs`` with its defaults.
        balance: class balance of the beliefs: ``own``, unchanged; ``weak``, that of the weak
            labels; or ``em``, estimated together with the confusion matrix.
        smoothing: number of rows added to every cell of the confusion matrix (Laplace), above 0.
        tolerance: EM stops when no parameter changes by more, at least 1e-12.
    """

    source: str = choice("answers", SOURCES)
    balance: str = choice("weak", BALANCES)
    smoothing: float = number(1.0, 1e-6)
    tolerance: float = number(1e-6, 1e-12, 0.1)

    def labels(self, plan: Plan, labels: Node) -> Node:
        prior = plan.prior() if self.source == "answers" else CCS().labels(plan, labels)
        return plan.apply(self.combine, weak=labels, prior=prior)

    def combine(self, weak: Targets, prior: Targets, seed: int) -> Targets:
        """Return the posterior (N, K); rows of weight 0 do not enter the confusion matrix."""
        belief: np.ndarray = prior.probs
        if self.balance == "weak":
            belief = matched(belief, balance_of(weak.probs, weak.used), weak.used)
        channel = estimate(
            belief,
            weak.probs,
            weak.used,
            shift=self.balance == "em",
            smoothing=self.smoothing,
            tolerance=self.tolerance,
        )
        _warn_of_opposition(channel.confusion)
        return replace(weak, probs=channel.posterior.astype(np.float32))


def _warn_of_opposition(confusion: np.ndarray) -> None:
    """Warn where the weak labels are right less often than by chance, if the beliefs are right."""
    classes = len(confusion)
    right = float(confusion.trace()) / classes
    if right * classes < 1:
        warnings.warn(
            f"posterior: if the beliefs are right, weak labels name the class of a row with "
            f"probability {right:.2f}, below the {1 / classes:.2f} of chance, and the posterior "
            "turns against them; are the untrained student's classes in the right order? See its "
            "zero-shot accuracy, and the prompt that its answers complete",
            DataWarning,
            stacklevel=3,
        )
