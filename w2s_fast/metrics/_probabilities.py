"""Checks of class probabilities and labels, and logarithms of saturated ones."""

from __future__ import annotations

import numpy as np

from w2s_fast.errors import W2SError

_SUM_TOLERANCE = 0.01  # rows of fp16 or bf16 probabilities sum to 1 within this


def checked_probs(probs: np.ndarray, name: str = "probs", first_row: int = 0) -> np.ndarray:
    """Return class probabilities (N, C) as float64 whose rows sum to 1.

    Args:
        probs: (N, C).
        name: of the array or file, for messages.
        first_row: number of the first row in messages; rows of files are counted from 1.

    Raises:
        W2SError: They have another shape, a value outside [0, 1], or a row that does not sum to 1.
    """
    array = np.asarray(probs)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2:
        raise W2SError(
            f"{name} has shape {array.shape}; expected (items, classes) with at least one item and "
            "two classes: give P(class 0) and P(class 1) for two classes"
        )
    values = array.astype(np.float64)
    sums = values.sum(1)
    # NaN fails both comparisons
    bad = ~((values >= 0).all(1) & (np.abs(sums - 1) <= _SUM_TOLERANCE))
    if bad.any():
        row = int(bad.argmax())
        raise W2SError(
            f"{name}: row {row + first_row} is {values[row].tolist()}; expected probabilities that "
            "sum to 1: apply softmax to logits, divide percentages by 100, and drop rows of models "
            "that diverged"
        )
    return values / sums[:, None]


def checked_labels(labels: np.ndarray, n_items: int, n_classes: int) -> np.ndarray:
    """Return class ids (N,) as int64.

    Raises:
        W2SError: They have another shape or type, or a class outside 0 to C - 1.
    """
    array = np.asarray(labels)
    if array.shape != (n_items,) or array.dtype.kind not in "iub":
        raise W2SError(
            f"labels have shape {array.shape} and dtype {array.dtype}; expected {n_items} "
            "integers, one class id per row of the probabilities"
        )
    ids = array.astype(np.int64)
    bad = (ids < 0) | (ids >= n_classes)
    if bad.any():
        raise W2SError(
            f"labels: row {int(bad.argmax())} is {ids[bad.argmax()]}; expected a class from 0 to "
            f"{n_classes - 1}"
        )
    return ids


def log_probs(probs: np.ndarray, name: str = "probs") -> np.ndarray:
    """Return log-probabilities (N, C) float64; a zero counts as the smallest number of its dtype.

    A softmax in fp16 or fp32 rounds small probabilities to 0, so a zero does not mean that the
    class is impossible.

    Raises:
        W2SError: As ``checked_probs``.
    """
    dtype = np.asarray(probs).dtype
    floor = np.finfo(dtype if dtype.kind == "f" else np.float64).smallest_subnormal
    return np.log(np.maximum(checked_probs(probs, name), float(floor)))
