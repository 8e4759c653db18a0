"""What the student believes and what the supervisor says, put together by how often each is right.

The supervisor's errors are a confusion matrix that EM estimates (equations: ``_channel``). The two
sources should err independently of each other given the class. That is why the belief is the
untrained student's, never that of a student who learned from the same labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._channel import estimate
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods.ccs import CCS

SOURCES = ("answers", "ccs")
BALANCES = ("own", "weak", "em")


@dataclass(frozen=True, kw_only=True)
class Posterior(Method):
    """Posterior class probabilities of every row given its belief and its weak label.

    Attributes:
        source: where beliefs come from: the untrained student's ``answers`` to the text, or its
            truth direction, method ``ccs`` with its defaults.
        balance: class balance of the beliefs: their ``own``, that of the ``weak`` labels, or
            estimated along with the confusion matrix (``em``).
        smoothing: rows added to every cell of the confusion matrix (Laplace), above 0.
        tolerance: EM ends when no parameter moves by more, at least 1e-12.
    """

    source: str = "answers"
    balance: str = "weak"
    smoothing: float = 1.0
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        self._one_of("source", SOURCES)
        self._one_of("balance", BALANCES)
        self._check("smoothing", 1e-6)
        self._check("tolerance", 1e-12, 0.1)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        prior = plan.prior() if self.source == "answers" else CCS().labels(plan, labels)
        return plan.apply(self.combine, weak=labels, prior=prior)

    def combine(self, weak: Targets, prior: Targets, seed: int) -> Targets:
        """Posterior (N, K); row weights stay, and rows of weight 0 teach the matrix nothing."""
        belief: np.ndarray = prior.probs
        if self.balance == "weak":
            belief = matched(belief, balance_of(weak.probs, weak.kept), weak.kept)
        found = estimate(
            belief,
            weak.probs,
            weak.kept,
            shift=self.balance == "em",
            smoothing=self.smoothing,
            tolerance=self.tolerance,
        )
        return replace(weak, probs=found.posterior.astype(np.float32))
