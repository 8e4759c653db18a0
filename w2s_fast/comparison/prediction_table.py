"""Read one model's predictions from a CSV, TSV, JSONL or Parquet file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.comparison.gold_classes import GoldClasses
from w2s_fast.comparison.manifest import ModelFile, file_inside
from w2s_fast.comparison.table_format import USUAL, TableFormat, option_names
from w2s_fast.errors import W2SError
from w2s_fast.files import file_hash
from w2s_fast.metrics import checked_probs
from w2s_fast.tasks._columns import is_missing
from w2s_fast.tasks._files import text_cell

if TYPE_CHECKING:
    import pyarrow

_EXPECTED = (
    "expected columns id, gold and either prob (P(class 1)), probs (a list per item), or one "
    "column per class: prob_0, prob_1, ... or prob_NAME, ..."
)
_CLASS = "prob_"  # prefix of a column per class
_MEANINGS = ("id", "gold", "prob", "probs", "group", "text")
_SHOWN = 60  # characters of a value in a message
# What probabilities were rounded to if they are equal by chance: text, bf16 or fp16, saturation.
_DECIMALS, _BITS, _SATURATED = 5, 12, 1e-4


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """Predictions of N test items by one model.

    Attributes:
        model: The model.
        digest: SHA-256 of the file.
        ids: (N) ids, all different.
        gold: (N,) int64 true classes.
        probs: (N, C) float64; rows sum to 1.
        precise: (N,) bool, whether no probability of a row is rounded so much that two items have
            the same ones by chance.
        classes: (C) names of the classes.
        groups: (N) names of groups of correlated items, or None.
        texts: (N) texts of the items, or None.
    """

    model: ModelFile
    digest: str
    ids: tuple[str, ...]
    gold: np.ndarray
    probs: np.ndarray
    precise: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None
    texts: tuple[str, ...] | None

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """Return the row of each id, which must be there."""
        row = {name: i for i, name in enumerate(self.ids)}
        return [row[name] for name in ids]


def read_predictions(folder: Path, model: ModelFile, form: TableFormat = USUAL) -> PredictionTable:
    """Read the file of a model.

    Raises:
        W2SError: The file cannot be read, lacks a column, repeats an id, or has values that are no
            class or no probabilities.
    """
    with option_names():
        return _read_predictions(file_inside(folder, model.file), model, form)


def _read_predictions(path: Path, model: ModelFile, form: TableFormat) -> PredictionTable:
    table = form.read(path)
    _check_named_once(table.column_names, path)
    columns = set(table.column_names)
    if missing := [name for name in ("id", "gold") if name not in columns]:
        raise W2SError(
            f"{path} has no column {missing[0]!r}; its columns are "
            f"{', '.join(table.column_names)}; {_EXPECTED}"
        )
    ids = _texts(table, "id", path, form.encoding)
    assert ids is not None
    _check_unique(ids, path)
    classes, probs = _read_probs(table, path)
    return PredictionTable(
        model=model,
        digest=file_hash(path),
        ids=ids,
        gold=_read_gold(table, classes, ids, path, form.encoding),
        probs=checked_probs(probs, str(path), first_row=1),
        precise=_precise(probs),
        classes=classes,
        groups=_texts(table, "group", path, form.encoding),
        texts=_texts(table, "text", path, form.encoding),
    )


def _check_named_once(names: Sequence[str], path: Path) -> None:
    """Check that no column that has a meaning is there twice; others may be."""
    for name in names:
        if (name in _MEANINGS or name.startswith(_CLASS)) and names.count(name) > 1:
            raise W2SError(
                f"{path}: {names.count(name)} columns are named {name!r}; remove or rename all but "
                "one"
            )


def _texts(table: pyarrow.Table, name: str, path: Path, encoding: str) -> tuple[str, ...] | None:
    """Return a column as text, None if the file lacks it."""
    if name not in table.column_names:
        return None
    values = [
        text_cell(value, f"{path}: {name} of row {row + 1}", encoding)
        for row, value in enumerate(table[name].to_pylist())
    ]
    for row, value in enumerate(values):
        if is_missing(value):
            raise W2SError(f"{path}: row {row + 1} has no {name}; fill it or drop the row")
    return tuple(str(value) for value in values)


def _check_unique(ids: Sequence[str], path: Path) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if name in first:
            raise W2SError(
                f"{path}: id {name!r} is in rows {first[name] + 1} and {row + 1}; expected every "
                "item once, so drop one or give it an id of its own"
            )
        first[name] = row


def _read_probs(table: pyarrow.Table, path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes and the probabilities (N, C), unchecked."""
    per_class = [name for name in table.column_names if name.startswith(_CLASS)]
    ways = [name for name in ("prob", "probs") if name in table.column_names]
    if len(ways) + bool(per_class) != 1:
        found = ", ".join([*ways, *per_class]) or "none of them"
        raise W2SError(f"{path} has {found}; {_EXPECTED}")
    if per_class:
        return _read_columns(table, per_class, path)
    if ways == ["prob"]:
        second = _numbers(table["prob"].to_pylist(), "prob", path)
        return ("0", "1"), np.stack([1 - second, second], 1)
    rows = [_as_list(cell, row, path) for row, cell in enumerate(table["probs"].to_pylist())]
    n_classes = len(rows[0])
    for row, values in enumerate(rows):
        if len(values) != n_classes:
            raise W2SError(
                f"{path}: row {row + 1} has {len(values)} probabilities, row 1 has {n_classes}; "
                "expected one per class in every row"
            )
    flat = _numbers([value for row in rows for value in row], "probs", path, n_classes)
    return tuple(map(str, range(n_classes))), flat.reshape(len(rows), n_classes)


def _read_columns(
    table: pyarrow.Table, names: list[str], path: Path
) -> tuple[tuple[str, ...], np.ndarray]:
    classes = [name.removeprefix(_CLASS) for name in names]
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
        if classes != [str(i) for i in range(len(classes))]:
            raise W2SError(
                f"{path} has the columns {', '.join(names)}; expected prob_0 to "
                f"prob_{len(names) - 1}"
            )
    columns = [_numbers(table[_CLASS + c].to_pylist(), _CLASS + c, path) for c in classes]
    return tuple(classes), np.stack(columns, 1)


def _precise(probs: np.ndarray) -> np.ndarray:
    mantissa, _ = np.frexp(probs)
    fine = np.ones(len(probs), dtype=bool)
    for scaled in (probs * 10**_DECIMALS, mantissa * 2**_BITS):
        fine &= (np.abs(scaled - scaled.round()) > 1e-6).all(1)
    return fine & (probs.min(1) > _SATURATED)


def _as_list(cell: Any, row: int, path: Path) -> list[Any]:
    """Return a list of probabilities, which text formats hold as JSON."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            cell = None
    if not isinstance(cell, list) or not cell:
        raise W2SError(
            f"{path}: row {row + 1} has no list in probs; expected one such as [0.2, 0.8]"
        )
    return cell


def _numbers(values: Sequence[Any], column: str, path: Path, per_row: int = 1) -> np.ndarray:
    try:
        return np.array([_number(value) for value in values])
    except (TypeError, ValueError, OverflowError) as err:
        row, value = next((i, v) for i, v in enumerate(values) if not _is_number(v))
        raise W2SError(
            f"{path}: row {row // per_row + 1} has {column}={_short(value)}; expected a number "
            "from 0 to 1"
        ) from err


def _short(value: Any) -> str:
    """Return a value as messages show it."""
    return repr(value)[:_SHOWN]


def _number(value: Any) -> float:
    """Return a cell as a number; some programs write a decimal comma."""
    text = isinstance(value, str) and "." not in value
    return float(value.replace(",", ".", 1) if text else value)


def _is_number(value: Any) -> bool:
    try:
        _number(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _read_gold(
    table: pyarrow.Table, classes: Sequence[str], ids: Sequence[str], path: Path, encoding: str
) -> np.ndarray:
    """Return the true classes as numbers."""
    known = GoldClasses(classes)
    gold = []
    for name, value in zip(ids, table["gold"].to_pylist(), strict=True):
        number = known.find(text_cell(value, f"{path}: gold of item {name!r}", encoding))
        if number is None:
            raise W2SError(
                f"{path}: item {name!r} has gold={_short(value)}; expected one of "
                f"{', '.join(classes)}"
            )
        gold.append(number)
    return np.array(gold, dtype=np.int64)
