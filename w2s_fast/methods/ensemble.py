"""Pool the labels of several weak models with different seeds.

Source: Lang, Huang & Li 2025 (arXiv 2501.13124), the finetune ensemble: the mean of four; more did
not help. Pooled logarithms are the product of experts (Hinton 2002).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from w2s_fast.methods._base import Method, Targets, choice, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._pool import POOLS, pool
from w2s_fast.methods._rows import member_labels


@dataclass(frozen=True, kw_only=True)
class Ensemble(Method):
    """Pool the labels of several weak models.

    Attributes:
        members: number of weak models, at least 2; the input labels count as the first.
        pool: "mean" of the probabilities, or "log": their normalised geometric mean.
    """

    members: int = number(4, 2)
    pool: str = choice("mean", POOLS)

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.pooled, weak=labels, **member_labels(plan, self.members))

    def pooled(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """Return the pooled probabilities, with the row weights of the input labels."""
        every = [weak.probs, *(m.probs for m in members.values())]
        return replace(weak, probs=pool(every, self.pool))
