r"""Retrain the student on a mixture of its own labels and the weak labels.

    q_i <- (1 - share) q_i + share p_i,          p_i from the previous student

Source: Furlanello et al. 2018 (arXiv 1805.04770), born-again networks, whose loss adds the
cross-entropies with the label and with the previous student: the same gradient. ``share`` 1 is
``strong_to_strong``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class BornAgain(Method):
    """Mix the student's soft labels with the weak labels.

    Attributes:
        share: share of the student's labels, in [0, 1]; every round mixes with the input labels.
        rounds: number of students before the last, at least 1.
    """

    share: float = number(0.5, 0.0, 1.0)
    rounds: int = number(1, 1)

    def labels(self, plan: Plan, labels: Node) -> Node:
        mixed = labels
        for _ in range(self.rounds):
            own = plan.labels(plan.student(mixed))
            mixed = plan.apply(self.mix, weak=labels, own=own)
        return mixed

    def mix(self, weak: Targets, own: Targets, seed: int) -> Targets:
        """Return the mixed probabilities; row weights do not change."""
        return replace(weak, probs=(1 - self.share) * weak.probs + self.share * own.probs)
