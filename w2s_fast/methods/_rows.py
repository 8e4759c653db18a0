"""Classes, losses and ranks of rows, for methods that select rows."""

from __future__ import annotations

import numpy as np

from w2s_fast.methods._balance import log_probs
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


def one_hot(classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return classes (N,) as one-hot (N, C) float32."""
    return np.eye(n_classes, dtype=np.float32)[classes]


def losses(weak: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Return the cross-entropy (..., N), float64 nats, of (..., N, C) with weak labels (N, C)."""
    return -(weak * log_probs(student)).sum(-1)


def smallest(scores: np.ndarray, share: float, among: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the round(share * n) rows with the smallest scores of n rows ``among``.

    At least one row is selected; ties go to the first rows.
    """
    rows = among.nonzero()[0]
    order = np.argsort(scores[rows], kind="stable")
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[rows[order[: max(1, round(share * len(rows)))]]] = True
    return chosen


def member_labels(plan: Plan, members: int) -> dict[str, Node]:
    """Return the labels of weak models 1 to ``members`` - 1; the input labels count as number 0."""
    return {f"member{i}": plan.weak_labels(member=i) for i in range(1, members)}
