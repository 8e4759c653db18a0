r"""Resample rows in proportion to their confidence.

    P(row i) ~ w_i (max_k q_ik)^power;     as many draws, with replacement, as used rows

A row that is drawn n times has weight n, so the total weight does not change. Without ``draw`` the
weights are the expected numbers of draws, so no row is dropped.

Source: the bootstrap of Efron 1979 with probabilities from the weak model's confidence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Resample(Method):
    """Weight rows by how confident their labels are.

    Attributes:
        power: exponent of the top probability, at least 0; 0 draws all rows with equal probability.
        draw: use integer weights, drawn with the run's seed, instead of their expected values.
    """

    power: float = number(1.0, 0.0)
    draw: bool = True

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.drawn, weak=labels)

    def drawn(self, weak: Targets, seed: int) -> Targets:
        """Return the labels with weights that sum to the number of used rows."""
        n = int(weak.used.sum())
        chance = weak.probs.max(1).astype(np.float64) ** self.power
        chance *= weak.used if weak.weight is None else weak.weight
        chance /= chance.sum()
        times = np.random.default_rng(seed).multinomial(n, chance) if self.draw else n * chance
        return replace(weak, weight=times.astype(np.float32))
