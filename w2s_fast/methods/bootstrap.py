"""Chains of students: each labels the transfer set for the next.

Sources: Burns et al. 2023 (arXiv 2312.09390) §4.3.1, models of growing size; EleutherAI/w2s
``strong_to_strong``, the same model again.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import ANY_KIND, Method
from w2s_fast.methods._plan import Node, Plan


@dataclass(frozen=True, kw_only=True)
class Bootstrap(Method):
    """Weak model, then every one of ``intermediate_models``, then the student."""

    kinds = ANY_KIND

    def labels(self, plan: Plan, labels: Node) -> Node:
        """Labels of the last model of the chain.

        Raises:
            W2SError: if the chain is empty.
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
    """The student labels the set anew and is trained again from its pretrained weights.

    Attributes:
        rounds: how often; 0 is the naive student.
    """

    kinds = ANY_KIND
    rounds: int = 1

    def __post_init__(self) -> None:
        self._check("rounds", 0)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """Labels of the student of the last round but one."""
        for _ in range(self.rounds):
            labels = plan.labels(plan.student(labels))
        return labels
