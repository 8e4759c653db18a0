"""Checks of the arrays that trust models are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.metrics import checked_probs

_FLOOR = 1e-6  # smallest probability whose logarithm is taken


def check_features(features: Any, n_features: int | None = None) -> np.ndarray:
    """Return features (n, D) as float64.

    Args:
        features: (n, D) numbers.
        n_features: D of the fitted model; None accepts any.

    Raises:
        W2SError: They have another shape, or are not finite.
    """
    array = np.asarray(features)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "iuf":
        raise W2SError(
            f"features have shape {array.shape} and dtype {array.dtype}; expected numbers "
            "(rows, features), neither of them 0"
        )
    if n_features is not None and array.shape[1] != n_features:
        raise W2SError(
            f"features have {array.shape[1]} columns; expected {n_features}, those that the model "
            "was fitted to: pass hidden states of the same model and layer"
        )
    values = array.astype(np.float64)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise W2SError(
            f"features: row {int(bad.argmax())} is not finite; expected finite numbers, drop the "
            "rows on which the model overflowed"
        )
    return values


def check_probs(probs: Any, n_rows: int | None = None, name: str = "probs") -> np.ndarray:
    """Return class probabilities (n, C) as float64 whose rows sum to 1.

    Args:
        probs: (n, C) class probabilities, C >= 2.
        n_rows: Expected n; None accepts any.
        name: Name of the argument in messages.

    Raises:
        W2SError: They have another shape, or a row is no distribution.
    """
    values = checked_probs(probs, name)
    if n_rows is not None and len(values) != n_rows:
        raise W2SError(f"{name} has {len(values)} rows; expected {n_rows}, one per row of the rest")
    return values


def check_number(name: str, value: Any, low: float, high: float = np.inf) -> float:
    """Return a number in [low, high].

    Raises:
        W2SError: It is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not low <= number <= high:
        span = f"at least {low:g}" if high == np.inf else f"in [{low:g}, {high:g}]"
        raise W2SError(f"{name} is {value!r}; expected a number {span}")
    return number


def check_folds(folds: Any, fewest: int) -> int:
    """Return a number of folds from 2 to ``fewest``.

    Raises:
        W2SError: It is none.
    """
    number = check_number("folds", folds, 2)
    if number != int(number) or number > fewest:
        raise W2SError(f"folds is {folds!r}; expected a whole number from 2 to {fewest}, the rows")
    return int(number)


def log_probs(probs: np.ndarray) -> np.ndarray:
    """Return logarithms of probabilities, clipped below at 1e-6."""
    return np.log(np.clip(probs, _FLOOR, None))


def one_hot(classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return classes (n,) as one-hot (n, C) float64."""
    return np.eye(n_classes)[classes]
