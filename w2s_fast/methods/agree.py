"""Rows on which several supervisors name the same class.

Source: agreement filters of Weak-to-Strong Reasoning (Yang, Ma & Liu 2024, arXiv 2407.13647), here
between supervisors that differ by their seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods._rows import member_labels


@dataclass(frozen=True, kw_only=True)
class Agree(Method):
    """Keep the rows where all members name the class of the label; labels stay as they are.

    Attributes:
        members: supervisors, at least 2; the labels that came in count as the first.
    """

    members: int = 2

    def __post_init__(self) -> None:
        self._check("members", 2)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        return plan.apply(self.agreed, weak=labels, **member_labels(plan, self.members))

    def agreed(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """The labels, with weight 0 where a member names another class."""
        own = weak.probs.argmax(1)
        same = np.ones(len(own), dtype=bool)
        for other in members.values():
            same &= other.probs.argmax(1) == own
        return weak.keep(same)
