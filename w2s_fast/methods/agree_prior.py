"""Rows on which the supervisor and the student, before any training, name the same class.

The two know different things, so what both say is more often true. What a language model prefers
to answer whatever the text would drop one class wholesale: by default its answers are shifted to
the class balance of the weak labels first (``_balance``).

Source: Weak-to-Strong Reasoning (Yang, Ma & Liu 2024, arXiv 2407.13647), stage I: supervisor and
in-context student agree. There the answers are texts, here classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._plan import Node, Plan


@dataclass(frozen=True, kw_only=True)
class AgreePrior(Method):
    """Keep the rows where weak label and the untrained student's answer are one class.

    Attributes:
        balance: class balance of the student's answers: that of the ``weak`` labels, or their
            ``own``.
    """

    balance: str = "weak"

    def __post_init__(self) -> None:
        self._one_of("balance", ("weak", "own"))

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        return plan.apply(self.agreed, weak=labels, prior=plan.prior())

    def agreed(self, weak: Targets, prior: Targets, seed: int) -> Targets:
        """The labels, with weight 0 where the student answers otherwise."""
        answers = prior.probs
        if self.balance == "weak":
            answers = matched(answers, balance_of(weak.probs, weak.kept), weak.kept)
        return weak.keep(answers.argmax(1) == weak.probs.argmax(1))
