r"""Majority vote of several weak models, on rows where the majority is large enough.

    q_i = share of the members that predict each class;     keep row i if max_k q_ik >= share

Source: Wang et al. 2022 (arXiv 2203.11171), self-consistency, and the confidence of majority
answers in Weak-to-Strong Reasoning (arXiv 2407.13647): there samples of one model vote, here
weak models with different seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import member_labels, one_hot


@dataclass(frozen=True, kw_only=True)
class SelfConsistency(Method):
    """Replace the labels by the members' votes.

    Attributes:
        members: number of weak models, at least 2; the input labels count as the first.
        share: share of the votes that the majority needs, in [0, 1].
        hard: use the majority's class instead of the shares. Ties go to the class of larger mean
            probability, then to the first.
    """

    members: int = number(5, 2)
    share: float = number(0.8, 0.0, 1.0)
    hard: bool = False

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.majority, weak=labels, **member_labels(plan, self.members))

    def majority(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """Return the shares of the votes (N, C), or the majority's class."""
        every = np.stack([weak.probs, *(m.probs for m in members.values())])
        n_classes = every.shape[2]
        votes = one_hot(every.argmax(2), n_classes).sum(0)
        most = votes.max(1)
        if self.hard:
            leading = np.where(votes == most[:, None], every.mean(0), -1.0)
            probs = one_hot(leading.argmax(1), n_classes)
        else:
            probs = votes / np.float32(len(every))
        # Compare counts in fp32: 7 of 25 is a share of 0.28, but 25 * 0.28 > 7 in fp64.
        return replace(weak, probs=probs).keep(most >= np.float32(self.share * len(every)))
