"""Print the results of a sweep in the terminal: a table of cells and a table of methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from w2s_fast.report.model_rows import (
    count,
    difference_cells,
    format_interval,
    format_number,
    level_text,
)
from w2s_fast.report.name_table import NameTable
from w2s_fast.report.names import printable

_CELL_NOTES = """\
* agreement with the supervisor where it is right, and where it is wrong
"""
_COMPARISON_NOTES = """\
* over units, of which each is a test set and seed
† one-sided, with signs flipped by unit: U units cannot give less than 2^-U; Holm corrects for the \
number of methods
"""
_MEDIAN_NOTES = """\
* rule of the openai/weak-to-strong notebook: it omits only pairs of equal models and \
pairs whose ceiling is not above the floor
"""


def print_sweep(results: Mapping[str, Any], console: Console) -> None:
    """Print every cell and student, the methods over all cells, notes and failures."""
    if results["cells"]:
        console.print(_cells_table(results))
        console.print()
        if results["comparisons"]:
            console.print(_comparisons_table(results))
            console.print()
        console.print(_medians_table(results))
        console.print()
    for line in notes(results):
        console.print(Text(printable(line), style="yellow"), soft_wrap=True)
    for name, why in results["failed"].items():
        console.print(Text(printable(f"failed: {name}: {why}"), style="red"), soft_wrap=True)


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason why a PGR is not reported and each use of true labels."""
    lines: dict[str, None] = {}  # a set in order: students of a cell often share a reason
    for cell in results["cells"]:
        title = _cell_title(cell)
        reasons = [row["refused"] for row in cell["summary"] if row["refused"]]
        uses = [f"{use['name']} used true labels: {use['use']}" for use in cell["gold"]]
        lines |= dict.fromkeys(f"{title}: {text}" for text in (*reasons, *uses))
    return list(lines)


def _cell_title(cell: Mapping[str, Any]) -> str:
    return f"{cell['task']}, {cell['weak']} → {cell['student']}"


def _cells_table(results: Mapping[str, Any]) -> NameTable:
    """Return the table of cells; each has a title line."""
    seeds = len(results["config"]["run"]["seeds"])
    heads = ("weak", "student", "ceiling", "PGR", "interval", "right*", "wrong*")
    title = f"Means over {count(seeds, 'seed')}, PGR with {level_text()} interval"
    table = NameTable(title, "cell, method", heads, _CELL_NOTES)
    for cell in results["cells"]:
        table.add_row(_cell_title(cell), style="bold")
        for i, row in enumerate(cell["summary"], 1):
            last = i == len(cell["summary"])
            table.add_row(row["name"], *_summary_cells(row), indent=2, end_section=last)
    return table


def _summary_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        *(format_number(row[k]) for k in ("weak", "student", "ceiling")),
        format_number(row["pgr_mean"], 2),
        format_interval(row),
        *(format_number(row["agreement"][k]) for k in ("weak_right", "weak_wrong")),
    ]


def _comparisons_table(results: Mapping[str, Any]) -> NameTable:
    heads = ("difference", f"{level_text()} interval*", "better", "units", "p†", "Holm")
    title = "Accuracy over cells and seeds, compared with plain cross-entropy"
    table = NameTable(title, "method", heads, _COMPARISON_NOTES)
    for row in results["comparisons"]:
        difference, interval, *p = difference_cells(row)
        wins = f"{row['wins']}/{row['pairs']}"
        table.add_row(row["name"], difference, interval, wins, str(row["units"]), *p)
    return table


def _medians_table(results: Mapping[str, Any]) -> NameTable:
    heads = ("median", "of", "OpenAI*", "of")
    table = NameTable("PGR over cells and seeds", "method", heads, _MEDIAN_NOTES)
    groups: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in results["medians"]:
        groups.setdefault(row["task"], []).append(row)
    for task, rows in groups.items():
        table.add_row(task or "all tasks", style="bold")
        for i, row in enumerate(rows, 1):
            table.add_row(row["name"], *_median_cells(row), indent=2, end_section=i == len(rows))
    return table


def _median_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        format_number(row["median"], 2),
        str(row["n"]),
        format_number(row["median_openai"], 2),
        str(row["n_openai"]),
    ]
