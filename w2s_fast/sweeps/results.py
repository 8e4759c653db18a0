"""The files of a sweep: sweep.json with everything, sweep.csv a row a run, the plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_fast.store import write_bytes, write_json

SWEEP = "sweep"
_RUN = (
    "seed", "name", "method", "loss", "weak", "student", "ceiling", "pgr", "pgr_low", "pgr_high",
    "refused", "gap", "gap_se", "n_test", "weak_auroc", "student_auroc", "ceiling_auroc",
    "weak_label_accuracy",
)  # fmt: skip
_AGREEMENT = ("all", "weak_right", "weak_wrong")


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
    """Return one row a cell, student and seed; what is None is empty."""
    head = ["cell", "task", "weak_model", "student_model", "same_model", *_RUN]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*head, *(f"agreement_{part}" for part in _AGREEMENT)])
    writer.writerows(_rows(results))
    return stream.getvalue()


def _rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for cell in results["cells"]:
        where = [cell[k] for k in ("name", "task", "weak", "student", "same")]
        for run in cell["runs"]:
            split = [run["agreement"][part] for part in _AGREEMENT]
            yield [*where, *(run[k] for k in _RUN), *split]
