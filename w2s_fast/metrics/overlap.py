r"""Overlap density: the share of items that have an easy and a hard pattern at once.

On such items the weak model is right for the easy pattern, and the student can learn the hard one.
Without true labels they are found by two cuts, each the change point of sorted values (the split
into two runs with the smallest squared deviation from their means):

    hard only     confidence max_c w_ic below its cut: the weak model sees no easy pattern
    overlap       of the rest, max over hard items j of |cos(x_i, x_j)| from its cut on: the
                  student's hidden states are near those of an item whose pattern is hard
    easy only     all others

    density = overlap items / all items

Source: overlap detection of Shin, Cooper & Sala 2025 (arXiv 2412.03881). Any data have a change
point, so densities compare sets of items under one pair of models and say little by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.metrics._probabilities import checked_probs

_BLOCK_BYTES = 64 * 2**20  # memory of one block of similarities


@dataclass(frozen=True, eq=False)
class Overlap:
    """Which items have easy and hard patterns.

    Attributes:
        hard: (N,) bool, items with a hard pattern alone.
        overlap: (N,) bool, items with both; all others have an easy pattern alone.
        confidence_cut: Confidence from which on an item has an easy pattern.
        similarity_cut: Similarity to a hard item from which on it has a hard pattern too.
    """

    hard: np.ndarray
    overlap: np.ndarray
    confidence_cut: float
    similarity_cut: float

    @property
    def density(self) -> float:
        """Share of the items that overlap."""
        return float(self.overlap.mean())


def find_overlap(weak: np.ndarray, states: np.ndarray) -> Overlap:
    """Return which items overlap, from weak labels and hidden states of the untrained student.

    Args:
        weak: (N, C) class probabilities of the weak model.
        states: (N, D) hidden states of the student. Of preferences, the difference of both
            completions, whose sign depends on their order and does not count.

    Raises:
        W2SError: The arrays do not fit, or confidences or similarities are all equal.
    """
    confidence = checked_probs(weak, "weak").max(1)
    x = np.asarray(states, dtype=np.float32)
    if x.ndim != 2 or len(x) != len(confidence) or not np.isfinite(x).all():
        raise W2SError(
            f"states have shape {x.shape} for {len(confidence)} weak labels; expected finite "
            "numbers, one row per label"
        )
    confidence_cut = change_point(confidence, "confidences of the weak labels")
    hard = confidence < confidence_cut
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    similarity = _nearest(x[~hard], x[hard])
    similarity_cut = change_point(similarity, "similarities to items of low confidence")
    overlap = np.zeros(len(x), dtype=bool)
    overlap[np.flatnonzero(~hard)[similarity >= similarity_cut]] = True
    return Overlap(hard, overlap, confidence_cut, similarity_cut)


def change_point(values: np.ndarray, name: str = "values") -> float:
    """Return the smallest value of the upper part of ``values`` (N,), split at the change point.

    The split minimises the squared deviations of both parts from their means.

    Raises:
        W2SError: All values are equal.
    """
    v = np.sort(np.asarray(values, dtype=np.float64))
    lower = np.arange(1, len(v))
    sums = np.cumsum(v - v.mean())[:-1] if len(v) else v  # centred, so that both parts cancel
    between = np.where(v[1:] > v[:-1], sums**2 / (lower * (len(v) - lower)), -1.0)
    if not len(between) or between.max() < 0:
        raise W2SError(
            f"the {name} are all equal ({len(v)} items); expected at least two different ones: use "
            "probabilities instead of hard labels, and states of a model that reads the texts"
        )
    return float(v[1:][between.argmax()])


def _nearest(x: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """Return the largest |cosine| (n,) of unit rows of ``x`` with those of ``hard``, in blocks.

    Rounded to 5 digits: equal rows differ by the rounding of fp32 products.
    """
    rows = max(1, _BLOCK_BYTES // (4 * len(hard)))
    blocks = [np.abs(x[i : i + rows] @ hard.T).max(1) for i in range(0, len(x), rows)]
    return np.concatenate(blocks).round(5)
