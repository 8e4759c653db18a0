"""Keep rows on which the weak label and the untrained student agree.

The two know different things, so a class that both predict is more often right. A language model's
bias for one answer would drop the other class entirely; by default, its probabilities are first
shifted to the class balance of the weak labels (``_balance``).

Source: Weak-to-Strong Reasoning (Yang, Ma & Liu 2024, arXiv 2407.13647), stage I: weak model
and in-context student agree. There the answers are texts, here classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._base import Method, Targets, choice
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class AgreePrior(Method):
    """Keep the rows where weak label and untrained student predict the same class.

    Attributes:
        balance: class balance of the student's predictions: ``weak``, that of the weak labels, or
            ``own``, unchanged.
    """

    balance: str = choice("weak", ("weak", "own"))

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.agreed, weak=labels, prior=plan.prior())

    def agreed(self, weak: Targets, prior: Targets, seed: int) -> Targets:
        """Return the labels with weight 0 where the student predicts another class."""
        student = prior.probs
        if self.balance == "weak":
            student = matched(student, balance_of(weak.probs, weak.used), weak.used)
        return weak.keep(student.argmax(1) == weak.probs.argmax(1))
