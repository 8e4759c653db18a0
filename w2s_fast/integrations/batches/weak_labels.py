"""Weak labels: class probabilities of items, read from a run's weak labels or from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.errors import W2SError, nearest
from w2s_fast.integrations.batches._arrays import items, numbers
from w2s_fast.paths import user_path
from w2s_fast.tasks._files import read_table

if TYPE_CHECKING:
    import pyarrow

TOLERANCE = 1e-2  # of the sum of probabilities, which may have been stored in bf16


@dataclass(frozen=True, eq=False)
class WeakLabels:
    """Class probabilities of N items by a supervisor.

    Attributes:
        ids: N different names; other types are converted to strings.
        probs: (N, C) float32, rows sum to 1; lists, or an array of NumPy, torch, Arrow or pandas.
        weight: (N,) float32 row weights, or None.
        source: origin of the labels, for messages.

    Raises:
        W2SError: for repeated ids, sizes that differ, values that are not numbers, NaN, negative
            numbers, and rows that do not sum to 1 within 0.01.
    """

    ids: tuple[str, ...]
    probs: np.ndarray
    weight: np.ndarray | None = None
    source: str = "weak labels"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(map(str, items(self.ids))))
        probs = numbers(f"{self.source}: probabilities are", self.probs)
        object.__setattr__(self, "probs", probs)
        if self.weight is not None:
            weight = numbers(f"{self.source}: weights are", self.weight)
            object.__setattr__(self, "weight", weight)
        if self.probs.ndim != 2 or len(self.probs) != len(self.ids):
            raise W2SError(
                f"{self.source}: probabilities of shape {self.probs.shape} for {len(self.ids)} "
                "items; expected (items, classes)"
            )
        if len(set(self.ids)) != len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise W2SError(f"{self.source}: id {twice!r} is repeated; expected one row an item")
        low, total = self.probs.min(1, initial=1), self.probs.sum(1)
        self._check(~np.isfinite(total), total, "NaN or infinite probabilities")
        self._check(low < 0, low, "a negative probability")
        off = abs(total - 1) > TOLERANCE
        self._check(off, total, "probabilities that do not sum to 1; apply a softmax first; sum")
        if self.weight is not None:
            if self.weight.shape != (len(self.ids),):
                raise W2SError(
                    f"{self.source}: weights of shape {self.weight.shape} for {len(self.ids)} "
                    "items; expected one an item"
                )
            wrong = ~(np.isfinite(self.weight) & (self.weight >= 0))
            self._check(wrong, self.weight, "a weight that is not a number of at least 0:")

    def __len__(self) -> int:
        return len(self.ids)

    def _check(self, wrong: np.ndarray, values: np.ndarray, what: str) -> None:
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise W2SError(
                f"{self.source}: {int(wrong.sum())} of {len(self.ids)} items have {what} "
                f"({self.ids[i]!r}: {float(values[i]):g})"
            )

    def at(self, ids: Sequence[Any]) -> WeakLabels:
        """Select the labels of items, in the given order.

        Raises:
            W2SError: if one of them has no label.
        """
        names = tuple(map(str, items(ids)))
        index = {key: row for row, key in enumerate(self.ids)}
        missing = [key for key in names if key not in index]
        if missing:
            raise W2SError(
                f"{self.source} has no label for {len(missing)} of {len(names)} items, first id "
                f"{missing[0]!r}{nearest(missing[0], self.ids[:10_000])}; label them or leave them "
                "out"
            )
        rows = [index[key] for key in names]
        weight = None if self.weight is None else self.weight[rows]
        return WeakLabels(names, self.probs[rows], weight, self.source)


def read_labels(
    path: str | Path,
    ids: Sequence[Any] | None = None,
    *,
    probs: str | Sequence[str] = "probs",
    id: str = "id",
    weight: str = "weight",
    n_classes: int | None = None,
) -> WeakLabels:
    """Read class probabilities from the weak labels of a run, or from any table.

    Args:
        path: a folder of Parquet files, as ``w2s-fast label`` prints it, or a Parquet, JSONL, CSV
            or TSV file.
        ids: items to select, in this order; None: all of them.
        probs: the column that holds lists of C numbers, or C columns of one number each.
        id: column of item names; numbers become strings.
        weight: column of row weights, which may be absent.
        n_classes: expected C, if known.

    Raises:
        W2SError: if the file, a column or an item is missing, or for another number of classes, for
            NaN, negative numbers, and rows that do not sum to 1 within 0.01.
    """
    path = user_path(path, "path")
    table = _table(path)
    names = tuple(map(str, _column(table, id, "id", path)))
    prob_names = [probs] if isinstance(probs, str) else list(probs)
    columns = [_column(table, name, "probs", path) for name in prob_names]
    rows = columns[0] if isinstance(probs, str) else list(zip(*columns, strict=True))
    labels = WeakLabels(
        names,
        _matrix(rows, names, path),
        _numbers(table[weight].to_pylist(), weight, path) if weight in table.column_names else None,
        str(path),
    )
    width = labels.probs.shape[1]
    if n_classes is not None and width != n_classes:
        raise W2SError(f"{path} has {width} classes, expected {n_classes}; is it another task's?")
    return labels if ids is None else labels.at(ids)


def _table(path: Path) -> pyarrow.Table:
    if not path.is_dir():
        try:
            return read_table(path)
        except W2SError as error:
            if "task." not in str(error):
                raise
            raise W2SError(
                f"{error}; weak labels have no such setting, so save the table as UTF-8 with commas"
            ) from error
    import pyarrow

    parts = sorted(path.glob("part-*.parquet")) or sorted(path.glob("*.parquet"))
    if not parts:
        raise W2SError(f"{path} holds no Parquet files; expected the folder of a run's weak labels")
    return pyarrow.concat_tables([read_table(part) for part in parts])


def _column(table: pyarrow.Table, name: str, option: str, path: Path) -> list[Any]:
    if name not in table.column_names:
        names = ", ".join(table.column_names)
        raise W2SError(
            f"{path} has no column {name!r}{nearest(name, table.column_names)}; it has {names}; "
            f"select another with {option}="
        )
    return table[name].to_pylist()


def _matrix(rows: Sequence[Any], names: Sequence[str], path: Path) -> np.ndarray:
    width = len(rows[0]) if hasattr(rows[0], "__len__") else 0
    for name, row in zip(names, rows, strict=True):
        if not hasattr(row, "__len__") or isinstance(row, str) or len(row) != width:
            raise W2SError(
                f"{path}: item {name!r} has probs {row!r}; expected a list of {width or 'C'} "
                "numbers, as many as classes"
            )
    return _numbers(rows, "probs", path)


def _numbers(values: Sequence[Any], name: str, path: Path) -> np.ndarray:
    """Convert to float32; missing values become NaN, which ``WeakLabels`` refuses."""
    try:
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise W2SError(
            f"{path}: column {name!r} holds a value that is not a number ({error})"
        ) from error
