"""Checked rows: scores (N, m), names of problems (N,), gold labels (N,).

A dense array of n problems with R responses each is ``scores.reshape(n * R, m)`` with the problems
``np.repeat(np.arange(n), R)``. Rows instead of a padded array keep two things apart: a problem with
fewer responses has fewer rows, and NaN is always an error.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from w2s_fast.errors import W2SError, terminal_line
from w2s_fast.integrations.batches._arrays import items, to_tensors
from w2s_fast.label_models.scores import check_score_matrix


@dataclass(frozen=True, eq=False)
class Problems:
    """The problem of every row.

    Attributes:
        names: n names of problems, in the order of their first rows.
        index: (N,) int64, position in ``names`` of the problem of each row.
        sizes: (n,) int64, rows of each problem.
    """

    names: tuple[Hashable, ...]
    index: np.ndarray
    sizes: np.ndarray


def check_problems(problems: Any, n_rows: int) -> Problems:
    """Number the problems of rows in the order of their first rows.

    Args:
        problems: (N,) names, equal for responses to one problem: strings or numbers.
        n_rows: N.

    Raises:
        W2SError: Another number of names than rows, or a name is missing.
    """
    names = sequence("problems", problems)
    if len(names) != n_rows or not names:
        raise W2SError(
            f"problems have {len(names)} names for {n_rows} rows; expected a name for each"
        )
    positions: dict[Hashable, int] = {}
    index = np.empty(n_rows, dtype=np.int64)
    for row, name in enumerate(names):
        if not is_name(name):
            raise W2SError(
                f"problems[{row}] is {shown(name)}; expected a name, an integer or a string"
            )
        index[row] = positions.setdefault(name, len(positions))
    return Problems(tuple(positions), index, np.bincount(index))


def is_name(value: Any) -> bool:
    """Return whether a value can name something: a string that is not blank, or a number."""
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int | float | np.generic) and bool(value == value)  # noqa: PLR0124, NaN


def check_scores(
    scores: Any, n_verifiers: int | None = None, *, varying: bool = False
) -> np.ndarray:
    """Check scores and convert them to float64 (N, m).

    Args:
        scores: (N, m) finite numbers, a column per verifier.
        n_verifiers: Expected m; None accepts any.
        varying: Refuse verifiers without information of their own: one that gives all rows the same
            score, and one that repeats another.

    Raises:
        W2SError: Shape or a score is wrong, or a verifier is constant or repeated.
    """
    table = torch.from_numpy(numbers("scores", scores))
    matrix = check_score_matrix(table, n_verifiers, row="response", source="verifier").numpy()
    if varying:
        _check_varying(matrix)
    return matrix


def check_row_scores(scores: Any) -> np.ndarray:
    """Check one score per row and convert to float64 (N,).

    Raises:
        W2SError: Shape or a score is wrong.
    """
    column = numbers("scores", scores)
    if column.ndim != 1 or not column.size:
        raise W2SError(
            f"scores have shape {column.shape}; expected one score per response (N,): combine the "
            "verifiers first, or select one column"
        )
    return check_scores(column[:, None])[:, 0]


def check_gold(gold: Any, n_rows: int | None = None) -> np.ndarray:
    """Check true labels of responses and convert them to bool (N,).

    Args:
        gold: (N,) bool, or 1 for a right response and 0 for a wrong one.
        n_rows: N; None accepts any.

    Raises:
        W2SError: Shape or a label is wrong.
    """
    labels = numbers("gold", gold)
    if labels.ndim != 1 or len(labels) != (len(labels) if n_rows is None else n_rows):
        rows = "(N,)" if n_rows is None else f"({n_rows},)"
        raise W2SError(f"gold has shape {labels.shape}; expected a label per response, {rows}")
    wrong = ~((labels == 0) | (labels == 1))  # true for NaN
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise W2SError(
            f"gold[{row}] is {labels[row]:g}; expected 1 for a right response and 0 for a wrong one"
        )
    return labels == 1


def check_share(name: str, value: Any, high: float = 1.0) -> float:
    """Return a number between 0 and ``high``.

    Raises:
        W2SError: It is none.
    """
    number = numbers(name, value)
    if number.ndim or not 0 < number < high:
        raise W2SError(f"{name} is {shown(value)}; expected a number in (0, {high:g})")
    return float(number)


def numbers(name: str, values: Any) -> np.ndarray:
    """Convert lists, or an array of NumPy, torch, Arrow or pandas, to float64.

    Raises:
        W2SError: The values are not a table of real numbers.
    """
    x = to_tensors(f"{name}:", values)
    if isinstance(x, list) or x.is_complex():
        why = "rows differ in length" if isinstance(x, list) else "they are complex"
        raise W2SError(f"{name}: not a table of numbers ({why})")
    return x.double().numpy()


def sequence(name: str, values: Any) -> list[Any]:
    """Return the Python values of a list, array or tensor of one dimension.

    Raises:
        W2SError: It is none.
    """
    try:
        if not isinstance(values, str | bytes | Mapping):  # whose parts are no entries
            return items(values)
    except TypeError:
        pass
    raise W2SError(f"{name}: {shown(values)}; expected a sequence, one entry per row")


def shown(value: Any) -> str:
    """Return a value as it is shown in an error message, a line of at most 80 characters."""
    return terminal_line(repr(value), 80)


def _check_varying(scores: np.ndarray) -> None:
    constant = np.flatnonzero((scores == scores[0]).all(0))
    if constant.size:
        first = int(constant[0])
        raise W2SError(
            f"verifiers {_listed(constant)} give all {len(scores)} rows the same score (verifier "
            f"{first}: {scores[0, first]:g}); expected scores that vary: drop these columns"
        )
    seen: dict[bytes, int] = {}
    for verifier, column in enumerate(scores.T):
        first = seen.setdefault((column + 0.0).tobytes(), verifier)  # -0 becomes 0
        if first != verifier:
            raise W2SError(
                f"verifiers {first} and {verifier} have equal scores in all {len(scores)} rows and "
                f"would count as two witnesses; drop column {verifier}"
            )


def _listed(values: Sequence[int] | np.ndarray) -> str:
    return ", ".join(str(int(v)) for v in values)
