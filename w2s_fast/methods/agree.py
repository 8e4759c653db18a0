"""Keep rows on which several weak models predict the same class.

Source: agreement filters of Weak-to-Strong Reasoning (Yang, Ma & Liu 2024, arXiv 2407.13647), here
between weak models with different seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import member_labels


@dataclass(frozen=True, kw_only=True)
class Agree(Method):
    """Keep the rows where all members predict the class of the label; labels do not change.

    Attributes:
        members: number of weak models, at least 2; the input labels count as the first.
    """

    members: int = number(2, 2)

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.agreed, weak=labels, **member_labels(plan, self.members))

    def agreed(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """Return the labels with weight 0 where a member predicts another class."""
        own = weak.probs.argmax(1)
        same = np.ones(len(own), dtype=bool)
        for other in members.values():
            same &= other.probs.argmax(1) == own
        return weak.keep(same)
