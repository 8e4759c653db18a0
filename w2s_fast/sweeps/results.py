"""The files of a sweep: sweep.json with everything, sweep.csv a row a run, the plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_fast.store import write_bytes, write_json

SWEEP = "sweep"
_SPLIT = "agreement"  # the one field of a run that has parts


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    """Write sweep.json, sweep.csv, sweep.png and sweep.svg, each whole or not at all.

    Args:
        out: An existing folder.
        results: What sweep.json holds.
    """
    from w2s_fast.sweeps.plot import render

    write_json(out / f"{SWEEP}.json", results)
    write_bytes(out / f"{SWEEP}.csv", to_csv(results).encode())
    for kind in ("png", "svg"):
        path = out / f"{SWEEP}.{kind}"
        if results["cells"]:
            write_bytes(path, render(results, kind))
        else:
            path.unlink(missing_ok=True)  # of an earlier sweep


def to_csv(results: Mapping[str, Any]) -> str:
    """Return one row a cell, student and seed, with every number of it; what is None is empty."""
    rows = [row for cell in results["cells"] for row in _rows(cell)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["cell"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _rows(cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    where = {
        "cell": cell["name"],
        "task": cell["task"],
        "weak_model": cell["weak"],
        "student_model": cell["student"],
        "same_model": cell["same"],
    }
    for run in cell["runs"]:
        plain = {name: value for name, value in run.items() if name != _SPLIT}
        yield where | plain | {f"{_SPLIT}_{part}": v for part, v in run[_SPLIT].items()}
