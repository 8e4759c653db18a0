"""The tables of docs/supervisors.md, from the committed results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.harness.row_files import RESULTS
from bench.supervised.experiments import BASELINE, DATA_SETS
from w2s_fast import metrics
from w2s_fast.report.model_rows import NOT_REPORTED, format_interval, format_number, level_text

FOLDER = RESULTS / "supervised"
PAGE = "docs/supervisors.md"
_HEADS = (
    "labels from", "covered", "label accuracy: covered", "all", "on test items", "loss",
    "student", f"− `{BASELINE}`", "interval", "p, Holm", "PGR", "interval",
)  # fmt: skip


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text, one per data set."""
    return {name: lambda _, name=name: _block(name) for name in DATA_SETS}


def _block(name: str) -> str:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return f"No rows have been recorded yet: `python -m bench supervised {name} --record`.\n"
    return table(json.loads(path.read_text()))


def table(results: Mapping[str, Any]) -> str:
    """Return a data set as a Markdown table: means over seeds, differences paired by seed."""
    experiments = results["experiments"]
    baseline = experiments[BASELINE]
    losses = [row["name"] for row in baseline["summary"]]
    compared = {
        (block, loss): _difference(experiment["runs"], baseline["runs"], loss)
        for block, experiment in experiments.items()
        for loss in losses
        if block != BASELINE
    }
    p = dict(zip(compared, metrics.holm([d.p for d in compared.values()]), strict=True))
    lines = [_line(_HEADS), _line(["---", *["---:"] * 4, "---", *["---:"] * 6])]
    for block, experiment in experiments.items():
        for row in experiment["summary"]:
            key = block, row["name"]
            first = row is experiment["summary"][0]
            labels = _label_cells(block, experiment) if first else [""] * 5
            lines.append(_line([*labels, *_student_cells(row, compared.get(key), p.get(key))]))
    task, first = results["task"], baseline["summary"][0]
    facts = results["environment"]
    return (
        "\n".join(lines) + f"\n\n{first['seeds']} seeds, {task['n_weak']} / {task['n_transfer']} / "
        f"{task['n_test']} texts of weak / transfer / test; ceiling {first['ceiling']:.3f} "
        f"(`{losses[0]}`); intervals at {level_text()}. {facts['cpu']}, torch {facts['torch']}, "
        f"commit {facts['git_sha']}.\n"
    )


def _difference(
    runs: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], name: str
) -> metrics.Difference:
    """Return the difference of two students that share splits and test items by seed."""
    own, other = (
        np.array([r["student"] for r in sorted(rows, key=lambda r: r["seed"]) if r["name"] == name])
        for rows in (runs, baseline)
    )
    return metrics.paired_difference(metrics.Runs(np.stack([own, other], -1)[None]))


def _label_cells(block: str, experiment: Mapping[str, Any]) -> list[str]:
    """Return the cells of the labels themselves, means over seeds."""
    name = experiment["summary"][0]["name"]
    own = [run for run in experiment["runs"] if run["name"] == name]
    everywhere = format_number(_mean(run["weak_label_accuracy"] for run in own))
    test = format_number(_mean(run["weak"] for run in own))
    rows = [row["transfer"] for row in experiment["supervisors"]]
    if not rows:
        return [block, "1.000", everywhere, everywhere, test]
    covered = [
        format_number(_mean(row[k] for row in rows)) for k in ("covered", "covered_accuracy")
    ]
    return [block, *covered, everywhere, test]


def _student_cells(
    row: Mapping[str, Any], difference: metrics.Difference | None, p: float | None
) -> list[str]:
    pgr = NOT_REPORTED if row["pgr_mean"] is None else f"{row['pgr_mean']:.2f}"
    compared = [""] * 3
    if difference is not None:
        ends = "–"
        if difference.low is not None and difference.high is not None:
            ends = f"{difference.low:+.3f} – {difference.high:+.3f}"
        compared = [f"{difference.mean:+.3f}", ends, "–" if p is None else f"{p:.2g}"]
    loss = row["loss"]
    return [f"`{loss}`", f"{row['student']:.3f}", *compared, pgr, format_interval(row)]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
