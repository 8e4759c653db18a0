"""Your own data: a CSV, TSV, JSONL or Parquet file with a text and a label column."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._files import check_file, column, read_table
from w2s_fast.tasks._split import make_examples, split_pool


class Local:
    """A file of labelled texts, split by us; a second file of test rows is optional.

    Rows with the same text (case and white space aside) or the same value in the group column
    are related and never stand in two splits; training rows related to a row of the test file
    are left out. A blank group value means that the row is related to none.
    """

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        Raises:
            W2SError: A file, a column or a value is missing or does not fit.
        """
        if cfg.path is None:
            raise W2SError(
                "task.path is not set: the task 'local' reads a .csv, .tsv, .jsonl or .parquet "
                "file; set task.path=FILE"
            )
        path = Path(cfg.path).expanduser()
        rows = _read(path, cfg)
        names = tuple(map(str, cfg.classes)) if cfg.classes else _infer_classes(path, rows, cfg)
        _check_labels(path, rows, names, cfg)
        if cfg.test_path is None:
            data = split_pool(_examples(rows, names), None, names, cfg, seed, str(path))
            return data.worded(cfg)
        test_path = Path(cfg.test_path).expanduser()
        test_rows = _read(test_path, cfg)
        _check_labels(test_path, test_rows, names, cfg)
        both = {key: rows[key] + test_rows[key] for key in rows}
        pool, test_pool = _examples(both, names).cut(len(rows["label"]))
        data = split_pool(pool, test_pool, names, cfg, seed, str(path), str(test_path))
        return data.worded(cfg)


_Rows = dict[str, list[Any]]  # keys: text, label, and where configured text_pair, group


def _read(path: Path, cfg: TaskConfig) -> _Rows:
    keys = [key for key in ("text", "text_pair", "label", "group") if getattr(cfg, key) is not None]
    refs = {key: str(getattr(cfg, key)) for key in keys}
    header = cfg.header
    if header is None:
        header = not all(ref.isdecimal() for ref in refs.values())
    check_file(path)
    table = read_table(path, header, cfg.delimiter, cfg.quoted)
    rows = {key: column(table, ref, f"task.{key}", path) for key, ref in refs.items()}
    for key in ("text", "text_pair"):
        if key in rows:
            rows[key] = [_text(value) for value in rows[key]]
            _check_present(path, rows[key], key, refs[key])
    rows["label"] = [_label(value, path, refs["label"]) for value in rows["label"]]
    _check_present(path, rows["label"], "label", refs["label"])
    return rows


def _check_labels(path: Path, rows: _Rows, names: tuple[str, ...], cfg: TaskConfig) -> None:
    for row, label in enumerate(rows["label"]):
        if label not in names:
            source = "task.classes" if cfg.classes else f"the labels of {cfg.path}"
            raise W2SError(
                f"{path}: label {label!r} in row {row + 1} is outside the classes "
                f"{list(names)} ({source}){nearest(label, names)}; correct the row or task.classes"
            )
    if len(set(rows["label"])) < 2:
        raise W2SError(
            f"{path}: all {len(rows['label'])} rows have the label {rows['label'][0]!r}; expected "
            "at least two classes, so check task.label or add rows of another class"
        )


def _examples(rows: _Rows, names: tuple[str, ...]) -> Examples:
    index = {name: number for number, name in enumerate(names)}
    groups = rows.get("group")
    if groups is not None:
        groups = [None if _is_missing(value) else str(value) for value in groups]
    labels = [index[label] for label in rows["label"]]
    return make_examples(rows["text"], labels, rows.get("text_pair"), groups)


def _infer_classes(path: Path, rows: _Rows, cfg: TaskConfig) -> tuple[str, ...]:
    """Sort the labels of the file: as numbers where all are whole numbers."""
    found = set(rows["label"])
    if len(found) > max(2, len(rows["label"]) // 2):
        raise W2SError(
            f"{path}: column {cfg.label!r} (task.label) has {len(found)} different values in "
            f"{len(rows['label'])} rows; expected class labels, so check task.label"
        )
    try:
        return tuple(sorted(found, key=int))
    except ValueError:
        return tuple(sorted(found))


def _check_present(path: Path, values: list[str | None], key: str, ref: str) -> None:
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise W2SError(
            f"{path}: {len(missing)} of {len(values)} rows have no value in column {ref!r} "
            f"(task.{key}), the first is row {missing[0] + 1}; fill or remove them"
        )


def _text(value: Any) -> str | None:
    return None if _is_missing(value) else str(value)


def _label(value: Any, path: Path, ref: str) -> str | None:
    """Bring a label to one spelling: 1, 1.0 and "1" are the class "1"."""
    if _is_missing(value):
        return None
    if isinstance(value, float):
        if not value.is_integer():
            raise W2SError(
                f"{path}: label {value!r} in column {ref!r} (task.label) is no class; expected "
                "strings or whole numbers"
            )
        return str(int(value))
    if not isinstance(value, str | int):
        raise W2SError(
            f"{path}: label {value!r} in column {ref!r} (task.label) is a "
            f"{type(value).__name__}; expected strings or whole numbers"
        )
    label = str(value).strip()
    return None if label.lower() == "nan" else label


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())
