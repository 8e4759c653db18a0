"""Checked rows of features (n, D) and labels (n,) that labeling functions are made from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models.votes import as_cpu_tensor, check_classes

MIN_ROWS = 2  # of a class: one row in a fold, one outside of it


def check_features(features: Any, n_features: int | None = None) -> Tensor:
    """Return features as a floating-point tensor (n, D) on the CPU; floats keep their dtype.

    Args:
        features: (n, D) finite numbers: a tensor, an array or nested lists.
        n_features: Expected D; None accepts any.

    Raises:
        W2SError: The shape is wrong, or a number is not finite.
    """
    x = as_cpu_tensor(features, "features cannot be read as numbers (n, D)")
    if x.ndim != 2 or 0 in x.shape:
        raise W2SError(
            f"features have shape {tuple(x.shape)}; expected (rows, features), neither of them 0"
        )
    if x.is_complex():
        raise W2SError(f"features have dtype {x.dtype}; expected real numbers")
    if n_features is not None and x.shape[1] != n_features:
        raise W2SError(
            f"features have {x.shape[1]} columns; the functions were fitted to {n_features}: pass "
            "the same features in the same order"
        )
    x = x if x.is_floating_point() else x.double()
    wrong = ~x.isfinite()
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise W2SError(
            f"feature {column} of row {row} is {float(x[row, column])}, one of {int(wrong.sum())} "
            "that are not finite; replace these values or drop the rows"
        )
    return x


def check_labels(labels: Any, n_rows: int, n_classes: int, min_rows: int = MIN_ROWS) -> Tensor:
    """Return labels as int64 (n,) if every class has labeled rows.

    Args:
        labels: (n,) integers of 0 .. K-1.
        n_rows: n.
        n_classes: K.
        min_rows: Least number of rows of each class.

    Raises:
        W2SError: Shape, dtype or a label is wrong, or a class has too few rows.
    """
    check_classes(n_classes)
    y = as_cpu_tensor(labels, "labels cannot be read as integers (n,)")
    if y.shape != (n_rows,):
        raise W2SError(f"labels have shape {tuple(y.shape)}; expected one a row, ({n_rows},)")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise W2SError(f"labels have dtype {y.dtype}; expected integer class ids")
    y = y.long()
    wrong = (y < 0) | (y >= n_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise W2SError(
            f"label of row {row} is {int(y[row])}; expected 0 to {n_classes - 1}: pass labeled "
            "rows only"
        )
    counts = torch.bincount(y, minlength=n_classes)
    few = int(counts.argmin())
    if int(counts[few]) < min_rows:
        raise W2SError(
            f"class {few} has {int(counts[few])} labeled rows; expected at least {min_rows} of "
            "every class: label more rows"
        )
    return y


def check_names(names: Any, n: int, what: str) -> tuple[str, ...]:
    """Return n names of columns as a tuple of texts.

    Raises:
        W2SError: There is another number of names.
    """
    listed = tuple(str(name) for name in names)
    if len(listed) != n:
        raise W2SError(f"{what} has {len(listed)} names; expected {n}, one a column")
    return listed
