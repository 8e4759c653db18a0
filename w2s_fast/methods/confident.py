"""Keep rows with confident weak labels.

Two classes: rows with P(class 1) at most ``low`` or at least ``high``. More classes: rows whose top
probability is at least ``high``.

Source: Yang et al. 2024 (arXiv 2406.11431), high-confidence labels. Their code also requires
that the label is true; this uses the label alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import one_hot


@dataclass(frozen=True, kw_only=True)
class Confident(Method):
    """Keep the rows whose weak labels are confident.

    Attributes:
        low: two classes: largest P(class 1) of a row kept as class 0, at most ``high``.
        high: smallest P(class 1), or with more classes top probability, of a row that is kept.
        hard: replace kept labels by their top class (ties: the first).
    """

    low: float = number(0.25, 0.0, 1.0)
    high: float = number(0.75, 0.0, 1.0)
    hard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise W2SError(
                f"Confident: low is {self.low}, high is {self.high}; expected low at most high"
            )

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.confident_rows, weak=labels)

    def confident_rows(self, weak: Targets, seed: int) -> Targets:
        """Return the labels with weight 0 on rows that are not confident."""
        probs = weak.probs
        if probs.shape[1] == 2:
            rows = (probs[:, 1] <= self.low) | (probs[:, 1] >= self.high)
        else:
            rows = probs.max(1) >= self.high
        if self.hard:
            weak = replace(weak, probs=one_hot(probs.argmax(1), probs.shape[1]))
        return weak.keep(rows)
