"""When to stop a chain of students, without true labels: agreement between successive rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def round_agreement(rounds: Sequence[np.ndarray], used: np.ndarray) -> np.ndarray:
    """Return a (R,) float64: a_r is the share of rows whose class is that of the round before.

    Args:
        rounds: probabilities (N, K) of the labels before the first round, then of its R students.
        used: (N,) bool, rows that count.
    """
    classes = np.stack([probs.argmax(1) for probs in rounds])[:, used]
    return (classes[1:] == classes[:-1]).mean(1)


def settled_round(agreement: np.ndarray) -> int:
    """Return the first round, from 1, after which the agreement a (R,) does not rise; at most R.

    While a chain corrects labels, each round agrees more with the one before. Once a_{r+1} <= a_r,
    further rounds exchange labels without settling, so round r is the last that is worth its
    training.
    """
    stalled = np.flatnonzero(agreement[1:] <= agreement[:-1])
    return int(stalled[0]) + 1 if len(stalled) else len(agreement)
