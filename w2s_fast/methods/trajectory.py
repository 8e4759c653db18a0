r"""Labels judged by how a student came to know them, not by what it knows in the end.

A first student is trained on all labels and predicts the transfer set at K moments. With p_k its
probabilities at moment k and y the weak label's top class, the best share of rows stays:

    loss     smallest   mean_k -sum_c q_c log p_kc
    margin   largest    mean_k log p_ky - max_{c != y} log p_kc      (differences of logits)
    early    smallest   first moment from which on the student's class is y at all moments; of
                        equals the smaller mean loss

Networks learn what is regular first and memorise wrong labels late, by when the last loss no
longer tells them apart.

Sources: Pleiss et al. 2020 (arXiv 2001.10528), area under the margin; Toneva et al. 2019 (arXiv
1812.05159), when rows are learned and forgotten; Arazo et al. 2019 (arXiv 1904.11238), losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.methods._balance import log_probs
from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods._rows import losses, one_hot, smallest

SCORES = ("loss", "margin", "early")


@dataclass(frozen=True, kw_only=True)
class Trajectory(Method):
    """Keep the rows that a student learned well.

    Attributes:
        share: of the rows that stay, in [0.05, 1].
        score: a name of ``SCORES``.
    """

    share: float = 0.8
    score: str = "loss"

    def __post_init__(self) -> None:
        self._check("share", 0.05, 1.0)
        self._one_of("score", SCORES)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        moments = plan.trajectory(plan.student(labels, record=True))
        return plan.apply(self.learned, weak=labels, moments=moments)

    def learned(self, weak: Targets, moments: np.ndarray, seed: int) -> Targets:
        """The labels, with weight 0 on rows that predictions (K, N, C) tell against."""
        y = weak.probs.argmax(1)
        score = losses(weak.probs, moments).mean(0)
        if self.score == "margin":
            score = -margins(moments, y).mean(0)
        elif self.score == "early":
            best = np.empty(len(y), dtype=np.int64)
            best[np.lexsort((score, since(moments, y)))] = np.arange(len(y))
            score = best
        return weak.keep(smallest(score, self.share, weak.kept))


def margins(moments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(K, N) log-probability of each row's class minus the largest of the others."""
    log_p = log_probs(moments)
    own = one_hot(classes, log_p.shape[2]) > 0
    return np.where(own, log_p, -np.inf).max(2) - np.where(own, -np.inf, log_p).max(2)


def since(moments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(N,) first of the moments 0 .. K from which on each row's class is predicted; K: never."""
    right = moments.argmax(2) == classes
    always_after = np.logical_and.accumulate(right[::-1], axis=0)
    return len(moments) - always_after.sum(0)
