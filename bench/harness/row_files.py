"""Read and write files of measured rows: one JSON object per line, one file per op."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.harness.environment import ROOT

RESULTS = ROOT / "bench" / "results"
Row = dict[str, object]
_FOLDERS = re.compile(r"(^|[=:;,])/(?:[^/,;:]+/)+")
KEY = ("op", "case", "dtype", "n", "d", "v", "allocator", "threads", "provider")


def key(row: Row) -> tuple[object, ...]:
    """Return the columns that two measurements of the same thing have in common."""
    # Only rows of a head have a hidden size.
    return tuple(row.get(name, 0) if name == "d" else row[name] for name in KEY)


def load(path: Path) -> list[Row]:
    """Return the rows of a file, or of every .jsonl file in a folder."""
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    return [json.loads(line) for f in files for line in f.read_text().splitlines() if line]


def save(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, replacing rows of the file that measure the same thing.

    A row that explains why nothing was measured does not replace a measurement.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    by_key = {key(row): row for row in (load(path) if path.exists() else [])}
    for row in rows:
        if "skipped" in row and "skipped" not in by_key.get(key(row), row):
            continue
        by_key.pop(key(row), None)
        by_key[key(row)] = row
    path.write_text("".join(json.dumps(row) + "\n" for row in by_key.values()))


def record(measured: list[Row], file: str | None = None) -> None:
    """Add rows to the committed ones: one file per op, or all to ``file``.

    Raises:
        SystemExit: A row may not be quoted.
    """
    if any(row["quick"] or row["dirty"] for row in measured):
        raise SystemExit(
            "bench: rows of a toy run, of a changed source tree or of a core older than its "
            "sources are not recorded; commit, rebuild, and run without --quick"
        )
    for row in measured:
        save(RESULTS / "cpu" / (file or f"{row['op']}.jsonl"), [row])


def without_folders(value: Any) -> Any:
    """Return JSON data with absolute paths cut to their last name, also those within a spec."""
    if isinstance(value, dict):
        return {without_folders(k): without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(v) for v in value]
    return _FOLDERS.sub(r"\1", value) if isinstance(value, str) else value


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write committed results: one JSON object, without folders of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(without_folders(results), indent=1) + "\n")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--quick``, and ``--out`` and ``--record``, which ``store`` reads."""
    parser.add_argument("--quick", action="store_true", help="toy sizes: check that it runs")
    parser.add_argument("--out", type=Path, help="add the rows to this file")
    parser.add_argument(
        "--record", action="store_true", help="replace the rows in bench/results/cpu (clean tree)"
    )


def store(rows: list[Row], options: argparse.Namespace, file: str | None = None) -> None:
    """Add rows to the file of ``--out``, and with ``--record`` to the committed ones."""
    if options.out:
        save(options.out, rows)
    if options.record:
        record(rows, file)


def number(row: Row, name: str) -> float:
    """Return a numeric column."""
    value = row[name]
    assert isinstance(value, int | float), f"{name} of {key(row)} is {value!r}"
    return float(value)
