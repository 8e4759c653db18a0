"""Print a run's results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from w2s_fast.report import PAGE, PLOT, RESULTS
from w2s_fast.report.deception_rows import DECEPTION_HEADS, deception_lines, deception_rows
from w2s_fast.report.diagnostic_rows import diagnostic_lines
from w2s_fast.report.label_rows import label_lines
from w2s_fast.report.merge_rows import SWEEP_HEADS, merge_lines, sweep_rows
from w2s_fast.report.model_rows import (
    ceilings,
    class_rows,
    difference_cells,
    format_interval,
    format_number,
    further_scores,
    interval_note,
    level_text,
    notes,
    runs_text,
    weak_label_line,
)
from w2s_fast.report.name_table import NameTable
from w2s_fast.report.names import printable
from w2s_fast.report.supervisor_rows import supervisor_lines


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print the runs, their means with intervals, the controls and the notes."""
    console.print(_runs_table(results))
    if results.get("differences"):
        console.print(_differences_table(results))
    console.print(_means_table(results))
    if further_scores(results):
        console.print(_further_table(results))
    console.print(weak_label_line(results), highlight=False)
    if results.get("deception"):
        console.print(_deception_table(results))
    if sweep_rows(results):
        console.print(_sweep_table(results))
    lines = (
        *supervisor_lines(results),
        *label_lines(results),
        *merge_lines(results),
        *deception_lines(results),
        *diagnostic_lines(results),
    )
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)
    for row in results["controls"]:
        console.print(
            f"control, seed {row['seed']}: the student without pretraining reaches "
            f"{row['accuracy']:.3f}",
            highlight=False,
        )
    if results["provenance"]["config"]["task"].get("path"):
        console.print(Text(_class_line(results)), soft_wrap=True)
    for note in notes(results):
        console.print(Text(printable(note), style="yellow"), soft_wrap=True)


def _class_line(results: Mapping[str, Any], most: int = 12) -> str:
    """Return one line of the classes that were read from a file, with their rows per split."""
    rows = class_rows(results)
    shown = ", ".join(f"{name!r} {' / '.join(counts)}" for name, *counts in rows[:most])
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"rows by class (weak / transfer / test): {shown}{more}"


def print_files(out: Path) -> None:
    """Print the paths of the files that a run has written."""
    print(f"\nresults  {out / RESULTS}\nplot     {out / PLOT}.png\npage     {out / PAGE}")


def _runs_table(results: Mapping[str, Any]) -> NameTable:
    models = ("weak", "student", "ceiling")
    table = NameTable("Accuracy by seed and method", "method", ("seed", *models, "PGR"))
    for r in results["runs"]:
        accuracies = (format_number(r[model]) for model in models)
        table.add_row(r["name"], str(r["seed"]), *accuracies, format_number(r["pgr"], 2))
    return table


def _differences_table(results: Mapping[str, Any]) -> NameTable:
    baseline = results["differences"][0]["baseline"]
    heads = ("difference", f"{level_text()} interval", "p", "p, Holm")
    table = NameTable(f"Accuracy compared with {baseline}, paired by run", "method", heads)
    for row in results["differences"]:
        table.add_row(row["name"], *difference_cells(row))
    return table


def _means_table(results: Mapping[str, Any]) -> NameTable:
    heads = ("accuracy", "AUROC", "PGR", "interval", "agrees*", "right*", "wrong*")
    caption = (
        "* with weak: on all test items, where weak is right, where weak is wrong\n"
        + interval_note(results)
    )
    table = NameTable(f"Means over {runs_text(results)}", "model", heads, caption)
    first = results["summary"][0]
    table.add_row("weak", format_number(first["weak"]), format_number(first["weak_auroc"]))
    for s in results["summary"]:
        table.add_row(
            s["name"],
            format_number(s["student"]),
            format_number(s["student_auroc"]),
            format_number(s["pgr_mean"], 2),
            format_interval(s),
            *(format_number(s["agreement"][k]) for k in ("all", "weak_right", "weak_wrong")),
        )
    for title, c in ceilings(results).items():
        table.add_row(title, format_number(c["ceiling"]), format_number(c["ceiling_auroc"]))
    return table


def _deception_table(results: Mapping[str, Any]) -> NameTable:
    name, *heads = DECEPTION_HEADS
    table = NameTable("Students under a conflict", name, heads)
    for cells in deception_rows(results):
        table.add_row(*cells)
    return table


def _sweep_table(results: Mapping[str, Any]) -> NameTable:
    name, *heads = SWEEP_HEADS
    table = NameTable("Interpolation with the initial weights", name, heads)
    for cells in sweep_rows(results):
        table.add_row(*cells)
    return table


def _further_table(results: Mapping[str, Any]) -> NameTable:
    """Return a table of the scores that only some tasks have, beside the accuracy."""
    titles = further_scores(results)
    table = NameTable("Groups and shifted items", "model", ("accuracy", *titles.values()))

    def add(name: str, row: Mapping[str, Any], model: str) -> None:
        keys = (model, *(f"{model}_{score}" for score in titles))
        table.add_row(name, *(format_number(row[key]) for key in keys))

    add("weak", results["summary"][0], "weak")
    for s in results["summary"]:
        add(s["name"], s, "student")
    for title, c in ceilings(results).items():
        add(title, c, "ceiling")
    return table
