"""Files of measured rows: one JSON object a line, one file an op."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bench.harness.environment import ROOT

RESULTS = ROOT / "bench" / "results"
Row = dict[str, object]
KEY = ("op", "case", "dtype", "n", "d", "v", "allocator", "threads", "provider")


def key(row: Row) -> tuple[object, ...]:
    """What makes two rows measurements of the same thing."""
    # Only the head has a hidden size; rows of the other ops do not name one.
    return tuple(row.get(name, 0) if name == "d" else row[name] for name in KEY)


def load(path: Path) -> list[Row]:
    """Rows of a file, or of every .jsonl file in a folder."""
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    return [json.loads(line) for f in files for line in f.read_text().splitlines() if line]


def save(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, replacing those of the file that measure the same thing.

    A row that says why nothing was measured does not replace a measurement.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key(row): row for row in (load(path) if path.exists() else [])}
    for row in rows:
        if "skipped" in row and "skipped" not in kept.get(key(row), row):
            continue
        kept.pop(key(row), None)
        kept[key(row)] = row
    path.write_text("".join(json.dumps(row) + "\n" for row in kept.values()))


def record(measured: list[Row], file: str | None = None) -> None:
    """Add rows to the committed ones: one file an op, or all to ``file``.

    Raises:
        SystemExit: if one may not be quoted.
    """
    if any(row["quick"] or row["dirty"] for row in measured):
        raise SystemExit(
            "bench: rows of a toy run, of a changed source tree or of a core older than its "
            "sources are not recorded; commit, rebuild, and run without --quick"
        )
    for row in measured:
        save(RESULTS / "cpu" / (file or f"{row['op']}.jsonl"), [row])


def number(row: Row, name: str) -> float:
    """A numeric column."""
    value = row[name]
    assert isinstance(value, int | float), f"{name} of {key(row)} is {value!r}"
    return float(value)
