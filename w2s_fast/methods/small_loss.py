r"""Co-teaching: two students, each of which learns what the other finds easy.

    round r = 1 .. rounds:  both train from scratch, each on its own rows;
        a student's new rows are the  1 - forget r / rounds  of all rows with the smallest loss,
        -sum_k q_ik log p_ik, of its PEER

Wrong labels are learned late and have large losses; the peer, which went wrong on other rows, sees
them. The student proper is one of the two, its rows after the last round are chosen by the peer.
The loss is that of the whole transfer set, not of a batch, and the trainings are whole ones.

Source: Han et al. 2018 (arXiv 1804.06872), whose rows are exchanged batch by batch. The pruning of
LLMRec, which cites it, sorts log-likelihoods in ascending order and keeps the first: it keeps the
LARGEST losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods._rows import losses, smallest


@dataclass(frozen=True, kw_only=True)
class SmallLoss(Method):
    """Keep the rows of smallest loss for a peer.

    Attributes:
        forget: share of rows left out in the end, about that of the wrong labels; in [0, 0.9].
        rounds: at least 1. One round trains the peer; each further one trains both.
    """

    forget: float = 0.3
    rounds: int = 1

    def __post_init__(self) -> None:
        self._check("forget", 0.0, 0.9)
        self._check("rounds", 1)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        own = peers = labels
        for r in range(1, self.rounds + 1):
            step = replace(self, forget=self.forget * (r / self.rounds), rounds=1)
            peer = plan.labels(plan.student(peers, member=1))
            if r < self.rounds:
                student = plan.labels(plan.student(own))
                peers = plan.apply(step.easy, weak=labels, peer=student)
            own = plan.apply(step.easy, weak=labels, peer=peer)
        return own

    def easy(self, weak: Targets, peer: Targets, seed: int) -> Targets:
        """The labels, with weight 0 on the share ``forget`` of largest loss for the peer."""
        loss = losses(weak.probs, peer.probs)
        return weak.keep(smallest(loss, 1 - self.forget, weak.kept))
