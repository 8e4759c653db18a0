"""Find the files of one split of a data set in a folder, and join their rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from w2s_fast.errors import W2SError
from w2s_fast.tasks._files import SUFFIXES, file_format

if TYPE_CHECKING:
    import pyarrow


def split_files(root: Path, split: str) -> list[Path]:
    """Find ``split``.ext, its shards, and files in a directory of that name, at any depth.

    Raises:
        W2SError: There are files of two kinds, which usually have the same rows.
    """
    named = re.compile(rf"{re.escape(split)}(-\d+-of-\d+)?\.")
    files = [path for path in root.rglob("*") if path.is_file() and file_format(path) in SUFFIXES]
    found = sorted(path for path in files if named.match(path.name) or path.parent.name == split)
    first_of: dict[str, Path] = {}
    for path in found:
        first_of.setdefault(_kind(path, split), path)
    if len(first_of) > 1:
        one, two = list(first_of.values())[:2]
        raise W2SError(
            f"task.path={root} has {one.relative_to(root)} and {two.relative_to(root)}, two kinds "
            f"of {split} files, whose rows would be read twice; keep one kind"
        )
    return found


def _kind(path: Path, split: str) -> str:
    """Return what the names of a split's files share: "train-*-of-3.parquet", "train/*.csv"."""
    suffix = path.name[path.name.lower().rindex(file_format(path)) :]
    if shard := re.match(rf"{re.escape(split)}-\d+-of-(\d+)\.", path.name):
        return f"{split}-*-of-{shard[1]}{suffix}"
    return path.name if path.name.startswith(f"{split}.") else f"{split}/*{suffix}"


def joined(tables: Mapping[Path, pyarrow.Table]) -> pyarrow.Table:
    """Return the rows of all files; a column may be empty, or of narrower numbers, in some of them.

    Args:
        tables: Table by file, with the same columns.

    Raises:
        W2SError: A column has another type in one file than in those before it.
    """
    import pyarrow

    (first, rows), *others = tables.items()
    for file, table in others:
        try:
            rows = pyarrow.concat_tables([rows, table], promote_options="permissive")
        except pyarrow.ArrowException as error:
            pairs = zip(rows.schema, table.schema, strict=True)
            unlike = [
                f"{b.name!r} has {b.type}, not {a.type}" for a, b in pairs if a.type != b.type
            ]
            raise W2SError(
                f"{file}: column {', '.join(unlike)} as in {first.name}; write all files of the "
                "split with the same types"
            ) from error
    return rows
