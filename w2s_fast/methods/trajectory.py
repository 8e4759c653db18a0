r"""Keep rows by how a student learned their labels, not by its final predictions.

A first student is trained on all labels and predicts the transfer set at K steps. With p_k its
probabilities at step k and y the weak label's top class, the best share of rows is kept:

    loss     smallest   mean_k -sum_c q_c log p_kc
    margin   largest    mean_k log p_ky - max_{c != y} log p_kc      (differences of logits)
    early    smallest   first step from which on the student always predicts y; ties: the smaller
                        mean loss

Networks learn regular labels first and memorise wrong ones late; by then the final loss no longer
separates them.

Sources: Pleiss et al. 2020 (arXiv 2001.10528), area under the margin; Toneva et al. 2019 (arXiv
1812.05159), when rows are learned and forgotten; Arazo et al. 2019 (arXiv 1904.11238), losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.methods._balance import log_probs
from w2s_fast.methods._base import Method, Targets, choice, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import losses, one_hot, smallest

CRITERIA = ("loss", "margin", "early")


@dataclass(frozen=True, kw_only=True)
class Trajectory(Method):
    """Keep the rows that a student learned best.

    Attributes:
        share: share of rows to keep, in [0.05, 1].
        score: name in ``CRITERIA``.
    """

    share: float = number(0.8, 0.05, 1.0)
    score: str = choice("loss", CRITERIA)

    def labels(self, plan: Plan, labels: Node) -> Node:
        moments = plan.trajectory(plan.student(labels, record=True))
        return plan.apply(self.learned, weak=labels, moments=moments)

    def learned(self, weak: Targets, moments: np.ndarray, seed: int) -> Targets:
        """Return the labels with weight 0 on the worst rows, from predictions (K, N, C)."""
        y = weak.probs.argmax(1)
        score = losses(weak.probs, moments).mean(0)
        if self.score == "margin":
            score = -margins(moments, y).mean(0)
        elif self.score == "early":
            best = np.empty(len(y), dtype=np.int64)
            best[np.lexsort((score, since(moments, y)))] = np.arange(len(y))
            score = best
        return weak.keep(smallest(score, self.share, weak.used))


def margins(moments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the log-probability (K, N) of each row's class minus the largest of the others."""
    log_p = log_probs(moments)
    own = one_hot(classes, log_p.shape[2]) > 0
    return np.where(own, log_p, -np.inf).max(2) - np.where(own, -np.inf, log_p).max(2)


def since(moments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the first step (N,), 0 to K, from which on each row's class is predicted; K: never."""
    right = moments.argmax(2) == classes
    always_after = np.logical_and.accumulate(right[::-1], axis=0)
    return len(moments) - always_after.sum(0)
