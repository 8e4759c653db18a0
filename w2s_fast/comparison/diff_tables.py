"""Print what differs between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2s_fast.report.model_rows import difference_cells, format_number, level_text
from w2s_fast.report.name_table import NameTable
from w2s_fast.report.names import printable

_STAGES = {
    "changed": "stages with other settings or inputs",
    "contents": "stages with equal settings and inputs, but other contents",
    "only_a": "stages of A alone",
    "only_b": "stages of B alone",
}


def print_diff(diff: Mapping[str, Any], console: Console) -> None:
    """Print the result of ``diff_runs``.

    Args:
        diff: What ``diff_runs`` returns.
        console: Where to print.
    """
    for title, part in (("Settings", "settings"), ("Software and machine", "environment")):
        if diff[part]:
            console.print(_changes_table(title, diff[part]))
    console.print(_models_table(diff))
    if any("difference" in row for row in diff["differences"]):
        console.print(_differences_table(diff))
        for note in diff["notes"]:
            console.print(Text(note), soft_wrap=True)
    for row in diff["differences"]:
        if row["reason"]:
            console.print(Text(printable(f"{row['name']}: {row['reason']}")), soft_wrap=True)
    for kind, title in _STAGES.items():
        if names := diff["stages"][kind]:
            console.print(Text(printable(f"{title}: {', '.join(names)}")), soft_wrap=True)
    if diff["equal"]:
        console.print("settings, results and stages are equal")


def _changes_table(title: str, changes: Mapping[str, Any]) -> Table:
    table = Table("", "A", "B", title=title, box=SIMPLE_HEAD, title_justify="left")
    for name, values in changes.items():
        cells = ("–" if value is None else str(value) for value in values)
        table.add_row(Text(printable(name)), *(Text(printable(cell)) for cell in cells))
    return table


def _models_table(diff: Mapping[str, Any]) -> NameTable:
    heads = ("seed", "A", "B", "B − A", "PGR of A", "PGR of B")
    table = NameTable("Accuracy by seed", "model", heads)
    for row in diff["models"]:
        a, b = (row[run] or {"accuracy": None, "pgr": None} for run in ("a", "b"))
        both = a["accuracy"] is not None and b["accuracy"] is not None
        table.add_row(
            row["name"],
            str(row["seed"]),
            format_number(a["accuracy"]),
            format_number(b["accuracy"]),
            f"{b['accuracy'] - a['accuracy']:+.3f}" if both else "–",
            format_number(a["pgr"], 2),
            format_number(b["pgr"], 2),
        )
    return table


def _differences_table(diff: Mapping[str, Any]) -> NameTable:
    heads = ("seeds", "B − A", f"{level_text()} interval", "p", "p, Holm")
    caption = (
        "An interval needs three seeds, or bases, with the same test items in both runs; that of a "
        "single seed is over its test items."
    )
    table = NameTable("Accuracy of B compared with A, paired by run", "model", heads, caption)
    for row in diff["differences"]:
        if "difference" in row:
            table.add_row(row["name"], str(len(row["seeds"])), *difference_cells(row))
    return table
