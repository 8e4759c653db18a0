"""What selecting methods share: classes, losses and ranks of rows."""

from __future__ import annotations

import numpy as np

from w2s_fast.methods._balance import log_probs
from w2s_fast.methods._plan import Node, Plan


def one_hot(classes: np.ndarray, n_classes: int) -> np.ndarray:
    """(N, C) float32 of classes (N,)."""
    return np.eye(n_classes, dtype=np.float32)[classes]


def losses(weak: np.ndarray, student: np.ndarray) -> np.ndarray:
    """(..., N) float64 cross-entropy of predictions (..., N, C) with weak labels (N, C), nats."""
    return -(weak * log_probs(student)).sum(-1)


def smallest(scores: np.ndarray, share: float, among: np.ndarray) -> np.ndarray:
    """(N,) bool: round(share * n) of the n rows ``among`` (N,) bool, those of smallest score.

    At least one row; of equal scores the first rows.
    """
    rows = among.nonzero()[0]
    order = np.argsort(scores[rows], kind="stable")
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[rows[order[: max(1, round(share * len(rows)))]]] = True
    return chosen


def member_labels(plan: Plan, members: int) -> dict[str, Node]:
    """Labels of the supervisors 1 to ``members`` - 1; what came in counts as number 0."""
    return {f"member{i}": plan.weak_labels(member=i) for i in range(1, members)}
