"""Apply labeling functions to texts: votes (n, m), a column per function."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import DataWarning, W2SError, one_line
from w2s_fast.label_models.votes import ABSTAIN, check_classes
from w2s_fast.labeling.functions import LabelingFunction, check_functions, check_texts


def apply_functions(
    functions: LabelingFunction | Sequence[LabelingFunction],
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    n_classes: int | None = None,
) -> Tensor:
    """Return the votes (n, m) int64 of m functions for n texts, ``ABSTAIN`` where one abstains.

    A function that abstains for every row is a ``DataWarning``.

    Args:
        functions: One or more, with different names.
        texts: n texts.
        pairs: n second texts, for functions that take them.
        n_classes: K; votes of K or more are an error. None accepts any class.

    Raises:
        W2SError: Two functions have the same name; one fails, or returns what is no class; a
            function takes a pair and there are none; every function abstains for every row.
    """
    listed = check_functions(functions)
    texts = check_texts("texts", texts)
    if n_classes is not None:
        check_classes(n_classes)
    seconds = _check_pairs(listed, pairs, len(texts))
    votes = torch.empty(len(texts), len(listed), dtype=torch.int64)
    for column, function in enumerate(listed):
        cast = [
            _vote(function, row, text, second, n_classes)
            for row, (text, second) in enumerate(zip(texts, seconds, strict=True))
        ]
        votes[:, column] = torch.tensor(cast)
    _check_coverage(votes, listed)
    return votes


def _check_pairs(
    functions: tuple[LabelingFunction, ...], pairs: Any, n_rows: int
) -> Sequence[str | None]:
    if pairs is None:
        for function in functions:
            if function.takes_pair:
                raise W2SError(
                    f"labeling function {function.name!r} takes (text, pair), and there are no "
                    "pairs; pass pairs=, or let it take the text alone"
                )
        return [None] * n_rows
    seconds = check_texts("pairs", pairs)
    if len(seconds) != n_rows:
        raise W2SError(f"there are {len(seconds)} pairs for {n_rows} texts; expected one for each")
    return seconds


def _vote(
    function: LabelingFunction, row: int, text: str, pair: str | None, n_classes: int | None
) -> int:
    try:
        value: Any = function(text, pair)
    except Exception as error:
        raise W2SError(
            f"labeling function {function.name!r} failed for row {row}: {type(error).__name__}: "
            f"{one_line(error, 200)}"
        ) from error
    vote = _as_class(value)
    if vote is None or (n_classes is not None and vote >= n_classes):
        classes = "a class, 0 or more," if n_classes is None else f"a class, 0 to {n_classes - 1},"
        hint = "; did it forget to return?" if value is None else ""
        if isinstance(value, bool | np.bool_):
            hint = "; write `return 1 if condition else ABSTAIN`"
        raise W2SError(
            f"labeling function {function.name!r} returned {value!r:.80} for row {row}; expected "
            f"{classes} or ABSTAIN (-1){hint}"
        )
    return vote


def _as_class(value: Any) -> int | None:
    """Return an integer of at least -1, or None; a truth value is no class."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        number = operator.index(value)
    except TypeError:
        return None
    return number if number >= ABSTAIN else None


def _check_coverage(votes: Tensor, functions: tuple[LabelingFunction, ...]) -> None:
    silent = (votes < 0).all(0)
    names = [repr(functions[j].name) for j in silent.nonzero()[:, 0].tolist()]
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warnings.warn(
            f"{len(names)} of {len(functions)} labeling functions abstain for all {len(votes)} "
            f"rows: {shown}",
            DataWarning,
            stacklevel=3,
        )
