"""Read the columns of a user's file by the names in `TaskConfig`, and check for empty cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.tasks._base import TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._examples import Item, split_items
from w2s_fast.tasks._files import check_file, column, file_format, read_table, text_cell

# A first row of nothing but these names its columns.
_HEADER_WORDS = {
    "text", "texts", "sentence", "sentence1", "sentence2", "review", "reviews", "comment",
    "content", "document", "body", "message", "title", "premise", "hypothesis", "passage",
    "tweet", "post", "input", "prompt", "question", "query", "instruction", "response",
    "completion", "answer", "chosen", "rejected", "output", "label", "labels", "class",
    "category", "target", "sentiment", "polarity", "stars", "rating", "score", "grade",
    "gold", "y", "group", "id", "is_safe",
}  # fmt: skip


def split_files(
    cfg: TaskConfig, seed: int, class_names: Sequence[str], read: Callable[[Path], list[Item]]
) -> TaskData:
    """Return the splits of ``cfg.path`` and, if given, ``cfg.test_path``.

    Raises:
        W2SError: A file, a column or a value is missing or does not fit.
    """
    paths = [data_path(cfg)]
    if cfg.test_path is not None:
        paths.append(Path(cfg.test_path))
    parts = [read(path) for path in paths]
    return split_items(parts, list(map(str, paths)), class_names, cfg, seed)


def data_path(cfg: TaskConfig) -> Path:
    """Return ``cfg.path``.

    Raises:
        W2SError: It is not set.
    """
    if cfg.path is None:
        raise W2SError(
            f"task.path is not set: the task {cfg.name!r} reads a .csv, .tsv, .jsonl or .parquet "
            "file; set task.path=FILE"
        )
    return Path(cfg.path)


def read_columns(
    path: Path,
    refs: Mapping[str, str],
    cfg: TaskConfig,
    optional: Sequence[str] = (),
    unpack: Callable[[Any], Any] = lambda cell: cell,
) -> dict[str, list[Any]]:
    """Return the cells of the named columns.

    Args:
        path: The file.
        refs: Field of `TaskConfig` -> name or position of its column.
        cfg: Format of a CSV or TSV file.
        optional: Fields whose column may be missing; the result then lacks them.
        unpack: Returns the text in a structured cell.

    Raises:
        W2SError: The file or a column is missing, the file is damaged, or a cell is no text.
    """
    required = {key: ref for key, ref in refs.items() if key not in optional}
    header = not all(ref.isdecimal() for ref in required.values())
    if cfg.header is not None:
        header = cfg.header
    check_file(path)
    table = read_table(path, header, cfg.delimiter, cfg.quoted, cfg.encoding)
    columns = {
        key: [
            text_cell(
                unpack(cell),
                f"{path}: row {row + 1} of column {ref!r} (task.{key})",
                cfg.encoding,
            )
            for row, cell in enumerate(column(table, ref, f"task.{key}", path))
        ]
        for key, ref in refs.items()
        if key not in optional or ref in table.column_names
    }
    if may_have_header(path, cfg, required):
        first = [columns[key][0] for key in required]
        if all(cell.strip().lower() in _HEADER_WORDS for cell in first):
            raise header_error(path, first)
    return columns


def may_have_header(path: Path, cfg: TaskConfig, refs: Mapping[str, str]) -> bool:
    """Return whether only the positions in ``refs`` say that a file has no header."""
    text_file = file_format(path) in (".csv", ".tsv", ".txt")
    return cfg.header is None and text_file and all(ref.isdecimal() for ref in refs.values())


def header_error(path: Path, cells: Sequence[str]) -> W2SError:
    """Return the error for a first row that is a header."""
    return W2SError(
        f"{path}: row 1 ({', '.join(map(repr, cells))}) looks like a header; set task.header=true, "
        "or false if it is an example"
    )


def texts(path: Path, values: Sequence[Any], key: str, ref: str) -> list[str]:
    """Return the cells of a column as strings.

    Raises:
        W2SError: A cell is empty.
    """
    cells = [None if is_missing(value) else written(value) for value in values]
    check_present(path, cells, key, ref)
    return [value for value in cells if value is not None]


def groups(values: Sequence[Any] | None, n: int) -> list[str | None]:
    """Return the cells of the group column; None for a blank cell, or if there is no column."""
    return [None if is_missing(value) else written(value) for value in values or [None] * n]


def written(value: Any) -> str:
    """Return a cell as people write it: Python spells the number 0.00002 "2e-05"."""
    text = str(value)
    if isinstance(value, float | Decimal) and "e" in text.lower():
        return f"{Decimal(text):f}"
    return text


def check_present(path: Path, values: Sequence[str | None], key: str, ref: str) -> None:
    """Raise `W2SError` if a value is None."""
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise W2SError(
            f"{path}: {len(missing)} of {len(values)} rows have no value in column {ref!r} "
            f"(task.{key}), the first is row {missing[0] + 1}; fill or remove them"
        )


def is_missing(value: Any) -> bool:
    """Return whether a cell is null, NaN or blank."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())
