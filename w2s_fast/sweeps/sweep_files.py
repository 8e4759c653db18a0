"""Write the files of a sweep: sweep.json, sweep.csv with a row per run, and the figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_fast.files import write_bytes, write_json

SWEEP = "sweep"


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    """Write sweep.json, sweep.csv, sweep.png and sweep.svg, each atomically.

    Args:
        out: An existing folder.
        results: The contents of sweep.json.
    """
    from w2s_fast.sweeps.sweep_figure import sweep_figure

    write_json(out / f"{SWEEP}.json", results)
    write_bytes(out / f"{SWEEP}.csv", to_csv(results).encode())
    for kind in ("png", "svg"):
        path = out / f"{SWEEP}.{kind}"
        if results["cells"]:
            write_bytes(path, sweep_figure(results, kind))
        else:
            path.unlink(missing_ok=True)  # a figure that an earlier sweep left


def to_csv(results: Mapping[str, Any]) -> str:
    """Return a row per cell, student and seed, with every number of the run; None is empty."""
    rows = [row for cell in results["cells"] for row in _csv_rows(cell)]
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["cell"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_rows(cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    columns = {
        "cell": cell["name"],
        "task": cell["task"],
        "weak_model": cell["weak"],
        "student_model": cell["student"],
        "same_model": cell["same"],
    }
    for run in cell["runs"]:
        scalars = {name: value for name, value in run.items() if not isinstance(value, Mapping)}
        parts = {
            f"{name}_{part}": value
            for name, values in run.items()
            if isinstance(values, Mapping)
            for part, value in values.items()
        }
        yield columns | scalars | parts
