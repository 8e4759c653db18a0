"""Your own labelled texts: a CSV, TSV, JSONL or Parquet file with a text and a label column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._columns import (
    check_present,
    data_path,
    groups,
    is_missing,
    read_columns,
    texts,
)
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._split import make_examples, split_pool


class Local:
    """A file of labelled texts, and optionally a second file of test rows.

    Rows with the same text (ignoring case and white space) or the same value in the group column
    are related and never in two splits; training rows related to a row of the test file are
    dropped. A blank group value means that the row is related to no other.
    """

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

        Raises:
            W2SError: A file, a column or a value is missing or does not fit.
        """
        path = data_path(cfg)
        rows = _read(path, cfg)
        names = tuple(map(str, cfg.classes)) if cfg.classes else _infer_classes(path, rows, cfg)
        _check_labels(path, rows, names, cfg)
        if cfg.test_path is None:
            data = split_pool(_examples(rows, names), None, names, cfg, seed, str(path))
            return data.with_prompt(cfg)
        test_path = Path(cfg.test_path).expanduser()
        test_rows = _read(test_path, cfg)
        _check_labels(test_path, test_rows, names, cfg)
        both = {key: rows[key] + test_rows[key] for key in rows}
        pool, test_pool = _examples(both, names).cut(len(rows["label"]))
        data = split_pool(pool, test_pool, names, cfg, seed, str(path), str(test_path))
        return data.with_prompt(cfg)


_Rows = dict[str, list[Any]]  # keys: text, label, and if configured text_pair, group


def _read(path: Path, cfg: TaskConfig) -> _Rows:
    keys = [key for key in ("text", "text_pair", "label", "group") if getattr(cfg, key) is not None]
    refs = {key: str(getattr(cfg, key)) for key in keys}
    rows = read_columns(path, refs, cfg)
    for key in ("text", "text_pair"):
        if key in rows:
            rows[key] = texts(path, rows[key], key, refs[key])
    rows["label"] = [_label(value, path, refs["label"]) for value in rows["label"]]
    check_present(path, rows["label"], "label", refs["label"])
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
    related = groups(rows.get("group"), len(rows["label"]))
    labels = [index[label] for label in rows["label"]]
    return make_examples(rows["text"], labels, rows.get("text_pair"), related)


def _infer_classes(path: Path, rows: _Rows, cfg: TaskConfig) -> tuple[str, ...]:
    """Return the sorted labels of the file, as numbers if all are integers."""
    names = set(rows["label"])
    if len(names) > max(2, len(rows["label"]) // 2):
        raise W2SError(
            f"{path}: column {cfg.label!r} (task.label) has {len(names)} different values in "
            f"{len(rows['label'])} rows; expected class labels, so check task.label"
        )
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def _label(value: Any, path: Path, ref: str) -> str | None:
    """Return a label in canonical spelling: 1, 1.0 and "1" are the class "1"."""
    if is_missing(value):
        return None
    if isinstance(value, float):
        if not value.is_integer():
            raise W2SError(
                f"{path}: label {value!r} in column {ref!r} (task.label) is not a class; expected "
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
