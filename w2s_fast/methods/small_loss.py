r"""Co-teaching: two students, each trained on the rows with the smallest loss of the other.

    round r = 1 .. rounds:  both train from scratch, each on its own rows;
        a student's next rows are the  1 - forget r / rounds  of all rows with the smallest loss,
        -sum_k q_ik log p_ik, of its PEER

Wrong labels are learned late and have large losses; the peer, which errs on other rows, exposes
them. The final student is one of the two; the peer selects its rows after the last round. Losses
are those of the whole transfer set, not of a batch, after complete trainings.

Source: Han et al. 2018 (arXiv 1804.06872), which exchanges rows batch by batch. The pruning of
LLMRec, which cites it, sorts log-likelihoods in ascending order and keeps the first, that is, the
largest losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import losses, smallest


@dataclass(frozen=True, kw_only=True)
class SmallLoss(Method):
    """Keep the rows with the smallest loss of a peer.

    Attributes:
        forget: share of rows dropped in the end, about that of wrong labels; in [0, 0.9].
        rounds: number of rounds, at least 1. The first trains the peer, each further one both.
    """

    forget: float = number(0.3, 0.0, 0.9)
    rounds: int = number(1, 1)

    def labels(self, plan: Plan, labels: Node) -> Node:
        own = peers = labels
        for r in range(1, self.rounds + 1):
            step = replace(self, forget=self.forget * (r / self.rounds), rounds=1)
            peer = plan.labels(plan.student(peers, member=1))
            if r < self.rounds:
                student = plan.labels(plan.student(own))
                peers = plan.apply(step.small_loss_rows, weak=labels, peer=student)
            own = plan.apply(step.small_loss_rows, weak=labels, peer=peer)
        return own

    def small_loss_rows(self, weak: Targets, peer: Targets, seed: int) -> Targets:
        """Return the labels with weight 0 on the share ``forget`` of largest peer losses."""
        loss = losses(weak.probs, peer.probs)
        return weak.keep(smallest(loss, 1 - self.forget, weak.used))
