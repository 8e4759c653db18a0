"""Your own labelled texts: a CSV, TSV, JSONL or Parquet file with a text and a label column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._columns import (
    check_present,
    data_path,
    groups,
    header_error,
    is_missing,
    may_have_header,
    read_columns,
    texts,
)
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._labels import (
    canonical,
    canonical_name,
    canonical_truths,
    ordered,
    warn_of_near_equals,
)
from w2s_fast.tasks._split import make_examples, split_pool
from w2s_fast.tasks._votes import read_votes


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
        test_rows = None if cfg.test_path is None else _read(Path(cfg.test_path), cfg)
        _spell_truths([rows] if test_rows is None else [rows, test_rows], cfg)
        names = _declared(cfg.classes) if cfg.classes else _infer_classes(path, rows, cfg)
        _check_labels(path, rows, names, cfg)
        if test_rows is None or cfg.test_path is None:
            votes = read_votes([path], names, cfg)
            data = split_pool(_examples(rows, names, votes), None, names, cfg, seed, str(path))
            return data.with_prompt(cfg)
        test_path = Path(cfg.test_path)
        _check_labels(test_path, test_rows, names, cfg)
        both = {key: rows[key] + test_rows[key] for key in rows}
        votes = read_votes([path, test_path], names, cfg)
        pool, test_pool = _examples(both, names, votes).cut(len(rows["label"]))
        data = split_pool(pool, test_pool, names, cfg, seed, str(path), str(test_path))
        return data.with_prompt(cfg)


_Rows = dict[str, list[Any]]  # keys: text, label, and if configured text_pair, group, subgroup


def _read(path: Path, cfg: TaskConfig) -> _Rows:
    keys = [
        key
        for key in ("text", "text_pair", "label", "group", "subgroup")
        if getattr(cfg, key) is not None
    ]
    refs = {key: str(getattr(cfg, key)) for key in keys}
    rows = read_columns(path, refs, cfg)
    for key in ("text", "text_pair", "subgroup"):
        if key in rows:
            rows[key] = texts(path, rows[key], key, refs[key])
    labels = [_label(path, row, value, refs["label"]) for row, value in enumerate(rows["label"])]
    check_present(path, labels, "label", refs["label"])
    rows["label"] = [label for label in labels if label is not None]
    if may_have_header(path, cfg, refs) and _first_is_alone(rows["label"]):
        raise header_error(path, [str(rows[key][0]) for key in refs])
    return rows


def _spell_truths(parts: Sequence[_Rows], cfg: TaskConfig) -> None:
    """Spell truth values alike, if no file and no ``task.classes`` has another label."""
    declared = [canonical_name(str(name)) for name in cfg.classes or ()]
    known = {name for part in parts for name in part["label"]}.union(declared)
    if canonical_truths(list(known)) != list(known):
        for part in parts:
            part["label"] = canonical_truths(part["label"])


def _first_is_alone(labels: Sequence[str]) -> bool:
    """Return whether the first label occurs once and each of the others at least twice."""
    counts = Counter(labels)
    return counts.pop(labels[0]) == 1 and len(counts) > 1 and min(counts.values()) > 1


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


def _examples(rows: _Rows, names: tuple[str, ...], votes: np.ndarray | None) -> Examples:
    index = {name: number for number, name in enumerate(names)}
    related = groups(rows.get("group"), len(rows["label"]))
    labels = [index[label] for label in rows["label"]]
    return make_examples(
        rows["text"],
        labels,
        rows.get("text_pair"),
        related,
        subgroups=rows.get("subgroup"),
        votes=votes,
    )


def _infer_classes(path: Path, rows: _Rows, cfg: TaskConfig) -> tuple[str, ...]:
    """Return the sorted labels of the file, as numbers if all are integers."""
    names = set(rows["label"])
    if len(names) > max(2, len(rows["label"]) // 2):
        raise W2SError(
            f"{path}: column {cfg.label!r} (task.label) has {len(names)} different values in "
            f"{len(rows['label'])} rows; expected class labels, so check task.label"
        )
    warn_of_near_equals(rows["label"], path)
    return ordered(names)


def _declared(classes: Sequence[str]) -> tuple[str, ...]:
    """Return ``task.classes`` in the spelling of labels."""
    names = canonical_truths([canonical_name(str(name)) for name in classes])
    for at, name in enumerate(names):
        if name in names[:at]:
            one, two = classes[names.index(name)], classes[at]
            raise W2SError(
                f"task.classes={list(classes)}: {one!r} and {two!r} are both {name!r}; expected "
                "different class names"
            )
    return tuple(names)


def _label(path: Path, row: int, value: Any, ref: str) -> str | None:
    """Return a label in canonical spelling, None for a missing one."""
    if is_missing(value) or str(value).strip().lower() == "nan":
        return None
    return canonical(value, path, row, ref)
