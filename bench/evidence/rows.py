"""The rows of the experiments: one line of JSON for each method of a cell, without any text.

A folder has a file for every protocol, data set and supervisor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.evidence.design import Cell
from bench.harness.row_files import RESULTS

ROWS = RESULTS / "evidence"
KEY = ("protocol", "data", "supervisor", "seed", "spec")
_SCORES = (
    "name", "method", "loss", "weak", "student", "ceiling", "weak_auroc", "student_auroc",
    "ceiling_auroc", "weak_label_accuracy", "agreement", "n_test",
)  # fmt: skip
# Of tasks with subgroups or out-of-distribution items; other rows do not have them.
_GROUP_SCORES = tuple(
    f"{model}_{score}"
    for model in ("weak", "student", "ceiling")
    for score in ("worst_group", "ood", "ood_worst_group")
)
_MACHINE = ("cpu", "isa", "torch", "threads", "git_sha", "dirty", "utc")
Row = Mapping[str, Any]


def rows_of(
    cell: Cell,
    results: Mapping[str, Any],
    failed: Mapping[str, str],
    seconds: float,
    machine: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows of a finished cell.

    Args:
        cell: The cell.
        results: Results of its run, of the methods that did not fail.
        failed: Reasons of the others, by spec.
        seconds: Wall time of the run, without what its store had.
        machine: From ``environment()``.
    """
    facts = {name: machine[name] for name in _MACHINE}
    rows = []
    runs = iter(results["runs"])
    for spec in cell.methods:
        identity = dict(zip(KEY, cell.key(spec), strict=True))
        if spec in failed:
            rows.append(identity | {"failed": failed[spec], "seconds": round(seconds, 1)} | facts)
            continue
        run = next(runs)
        gold = [use["use"] for use in results["gold"] if use["name"] == run["name"]]
        rows.append(
            identity
            | {name: run[name] for name in _SCORES}
            | {name: run[name] for name in _GROUP_SCORES if run.get(name) is not None}
            | {"gold": gold, "seconds": round(seconds, 1)}
            | facts
        )
    return rows


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder; none if it does not exist."""
    lines = [
        line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines if line.strip()]


def append_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Add rows at the ends of their files, and wait until they are on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in groupby(rows, file_name):
        with (folder / name).open("a") as f:
            f.write("".join(json.dumps(row) + "\n" for row in some))
            f.flush()
            os.fsync(f.fileno())


def file_name(row: Row) -> str:
    """Return the name of the file that a row belongs to."""
    return f"{row['protocol']}-{row['data']}-{row['supervisor']}.jsonl"


def finished(rows: Sequence[Row]) -> set[tuple[Any, ...]]:
    """Return the keys of rows, see ``Cell.key``."""
    return {tuple(row[name] for name in KEY) for row in rows}
