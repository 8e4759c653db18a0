"""Chains of models: each labels the transfer set for the next.

Sources: Burns et al. 2023 (arXiv 2312.09390) §4.3.1, models of increasing size; EleutherAI/w2s
``strong_to_strong``, the same model repeatedly.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import ANY_KIND, Method, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Bootstrap(Method):
    """Train every one of ``intermediate_models`` on the labels of the model before it."""

    kinds = ANY_KIND

    def labels(self, plan: Plan, labels: Node) -> Node:
        """Return the labels of the last intermediate model.

        Raises:
            W2SError: There are no intermediate models.
        """
        if not plan.intermediate_models:
            raise W2SError(
                "method 'bootstrap' needs models between weak and student: set "
                "intermediate_models, e.g. --intermediate_models path/to/medium"
            )
        for position in range(plan.intermediate_models):
            labels = plan.labels(plan.intermediate(position, labels))
        return labels


@dataclass(frozen=True, kw_only=True)
class StrongToStrong(Method):
    """Relabel the transfer set with the student and train again from the pretrained weights.

    Attributes:
        rounds: number of repetitions; 0 is the naive student.
    """

    kinds = ANY_KIND
    rounds: int = number(1, 0)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """Return the labels of the last student but one."""
        for _ in range(self.rounds):
            labels = plan.labels(plan.student(labels))
        return labels
