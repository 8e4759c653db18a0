"""Counts of pairs of classes: true against predicted, and of one voter against another.

N items, C classes, m voters.
"""

from __future__ import annotations

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.metrics._probabilities import checked_labels


def confusion(chosen: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the confusion matrix (C, C) int64: entry (t, p) counts items of class t called p.

    Row sums are the true class balance, column sums the predicted one.

    Args:
        chosen: (N,) predicted classes.
        labels: (N,) true classes.
        n_classes: C.

    Raises:
        W2SError: Classes have another shape or type, or are outside 0 to C - 1.
    """
    true = checked_labels(labels, len(np.asarray(chosen)), n_classes)
    predicted = checked_labels(chosen, len(true), n_classes)
    cells = np.bincount(true * n_classes + predicted, minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes)


def vote_agreement(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each pair of voters names the same class where both vote.

    Args:
        votes: (N, m) integer classes, -1 for an abstention.

    Returns:
        (m, m) share of equal votes, NaN for pairs that never vote on the same item, and (m, m)
        int64 number of items on which both vote.

    Raises:
        W2SError: Votes are no matrix of integers.
    """
    v = np.asarray(votes)
    if v.ndim != 2 or v.dtype.kind not in "iu":
        raise W2SError(
            f"votes have shape {v.shape} and dtype {v.dtype}; expected integers (items, voters), "
            "-1 for an abstention"
        )
    cast = (v >= 0).astype(np.int64)
    both = cast.T @ cast
    classes = range(int(v.max(initial=-1)) + 1)
    same = sum(((v == c).astype(np.int64).T @ (v == c) for c in classes), np.zeros_like(both))
    share = np.divide(same, both, out=np.full(both.shape, np.nan), where=both > 0)
    return share, both
