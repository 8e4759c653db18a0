r"""Rows whose labels follow a shortcut, found without knowing the shortcut or the groups.

A shortcut is more available than what it stands for, so a model of little capacity learns it. With
its class probabilities b of N rows (cross-fitted, such as those of ``low_capacity_probs``), weak
labels w, a student's s, and, if there is one, a third opinion o (such as the untrained student's
zero-shot answers), for c_i the top class of w_i:

    lean_i      b_i(c_i) s_i(c_i)                     student and shortcut are for the weak label
    against_i   1 - b_i(c_i)                          the weak label contradicts the shortcut
    misled_i    lean_i (1 - o_i(c_i))                 all lean on it, and the third opinion does not

``against`` grades the error rows of Just Train Twice (Liu et al. 2021, arXiv 2107.09044), where the
model of little capacity is one that is trained briefly and an error is hard; there and here they
are a guess of the groups on which a shortcut fails. Predictivity and availability of a shortcut:
Hermann et al. 2024 (arXiv 2310.16228).

Errors that two models share are a second sign, which needs true labels of some items:

    observed    share of items with the same wrong class
    expected    sum_y P(y) sum_{k != y} P(w = k | y) P(s = k | y),  were errors independent given y
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.metrics._probabilities import checked_labels, checked_probs


@dataclass(frozen=True, eq=False)
class ShortcutScores:
    """Scores of N rows in [0, 1], see the module; the larger, the more.

    Attributes:
        lean: (N,) float64, how far weak label, student and low-capacity model agree.
        against: (N,) float64, how far the weak label contradicts the low-capacity model.
        misled: (N,) float64, ``lean`` where a third opinion contradicts it; None without one.
    """

    lean: np.ndarray
    against: np.ndarray
    misled: np.ndarray | None


@dataclass(frozen=True)
class SharedErrors:
    """Errors that student and weak model have in common.

    Attributes:
        observed: Share of items on which both predict the same wrong class.
        expected: The share if their errors were independent given the true class.
    """

    observed: float
    expected: float

    @property
    def excess(self) -> float:
        """What is observed beyond what is expected."""
        return self.observed - self.expected


def shortcut_scores(
    weak: np.ndarray,
    student: np.ndarray,
    low_capacity: np.ndarray,
    other: np.ndarray | None = None,
) -> ShortcutScores:
    """Return the scores of every row, from class probabilities (N, C) of the same rows.

    Args:
        weak: Weak labels.
        student: Predictions of the student.
        low_capacity: Predictions of a low-capacity model of the weak labels, each by a fit that
            has not seen the row.
        other: Predictions of a model that has not learned the weak labels, or None.

    Raises:
        W2SError: The arrays are no probabilities, or differ in shape.
    """
    arrays = {"weak": weak, "student": student, "low_capacity": low_capacity}
    if other is not None:
        arrays["other"] = other
    checked = {name: checked_probs(probs, name) for name, probs in arrays.items()}
    for name, probs in checked.items():
        if probs.shape != checked["weak"].shape:
            raise W2SError(
                f"{name} has shape {probs.shape}, weak {checked['weak'].shape}; expected "
                "predictions of the same rows and classes"
            )
    rows, top = np.arange(len(weak)), checked["weak"].argmax(1)
    of_top = {name: probs[rows, top] for name, probs in checked.items()}
    lean = of_top["low_capacity"] * of_top["student"]
    misled = None if other is None else lean * (1 - of_top["other"])
    return ShortcutScores(lean, 1 - of_top["low_capacity"], misled)


def shared_errors(weak: np.ndarray, student: np.ndarray, labels: np.ndarray) -> SharedErrors:
    """Return how often both models make the same error, and how often chance would have it.

    Args:
        weak, student: (N, C) class probabilities of the same items.
        labels: (N,) true classes.

    Raises:
        W2SError: The arrays do not fit.
    """
    w, s = checked_probs(weak, "weak"), checked_probs(student, "student")
    if w.shape != s.shape:
        raise W2SError(
            f"student has shape {s.shape}, weak {w.shape}; expected predictions of the same items "
            "and classes"
        )
    n_classes = w.shape[1]
    gold = checked_labels(labels, len(w), n_classes)
    same = (w.argmax(1) == s.argmax(1)) & (w.argmax(1) != gold)
    expected = 0.0
    for y in np.unique(gold):
        own = gold == y
        shares = [np.bincount(p.argmax(1)[own], minlength=n_classes) / own.sum() for p in (w, s)]
        expected += own.mean() * (np.delete(shares[0], y) @ np.delete(shares[1], y))
    return SharedErrors(float(same.mean()), float(expected))
