"""The results of a sweep in the terminal: one table of cells, one of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2s_fast.report.table import interval, number

_CELL_NOTES = """\
* agreement with the supervisor where that is right, where it is wrong
  k/n behind a method: PGR of the k seeds that are not refused
"""
_METHOD_NOTES = """\
* their notebook's rule: nothing refused, no pairs of equal models
† mean difference of accuracy to plain cross-entropy; p is one-sided, signs flipped
  by unit (a task and seed): U units cannot give less than 2^-U
"""


def print_sweep(results: Mapping[str, Any], console: Console) -> None:
    """Print every cell and student, what is true of each method, every refusal and failure."""
    if results["cells"]:
        console.print(_cells(results))
        console.print(_CELL_NOTES, highlight=False, soft_wrap=True)
        console.print(_methods(results))
        console.print(_METHOD_NOTES, highlight=False, soft_wrap=True)
    for line in notes(results):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    for name, why in results["failed"].items():
        console.print(Text(f"failed: {name}: {why}", style="red"), soft_wrap=True)


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return one line a refusal and a use of true labels."""
    found: dict[str, None] = {}  # students of one cell mostly share their ceiling, and the reason
    for cell in results["cells"]:
        found |= dict.fromkeys(
            f"{_where(cell)}: {row['refused']}" for row in cell["summary"] if row["refused"]
        )
        found |= dict.fromkeys(
            f"{_where(cell)}: {use['name']} used true labels: {use['use']}" for use in cell["gold"]
        )
    return list(found)


def _where(cell: Mapping[str, Any]) -> str:
    return f"{cell['task']}, {cell['weak']} → {cell['student']}"


def _table(title: str, first: str, heads: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False
    )
    table.add_column(first, overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _cells(results: Mapping[str, Any]) -> Table:
    """A line of its own for each cell, so that names have room in 80 columns too."""
    seeds = len(results["config"]["run"]["seeds"])
    heads = ("weak", "student", "ceiling", "PGR", "interval", "right*", "wrong*")
    title = f"Means over {seeds} seed{'s' * (seeds != 1)}, PGR with 95 % interval"
    table = _table(title, "cell, method", heads)
    for cell in results["cells"]:
        table.add_row(Text(_where(cell), style="bold"))
        for i, row in enumerate(cell["summary"], 1):
            kept = f" {row['seeds']}/{seeds}" if 0 < row["seeds"] < seeds else ""
            name = Text(f"  {row['name']}{kept}")
            table.add_row(name, *_row(row), end_section=i == len(cell["summary"]))
    return table


def _row(row: Mapping[str, Any]) -> list[str]:
    return [
        *(number(row[k]) for k in ("weak", "student", "ceiling")),
        "refused" if row["pgr_mean"] is None else number(row["pgr_mean"], 2),
        interval(row),
        *(number(row["agreement"][k]) for k in ("weak_right", "weak_wrong")),
    ]


def _methods(results: Mapping[str, Any]) -> Table:
    heads = ("median", "of", "OpenAI*", "of", "- xent†", "better", "units", "p†")
    table = _table("PGR over cells and seeds, and against cross-entropy", "method", heads)
    against = {c["name"]: c for c in results["comparisons"]}
    groups: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in results["medians"]:
        groups.setdefault(row["task"], []).append(row)
    for task, rows in groups.items():
        table.add_row(Text(task or "all tasks", style="bold"))
        whole = task is None or len(groups) == 1
        for i, row in enumerate(rows, 1):
            compared = _against(against.get(row["name"])) if whole else []
            name = Text(f"  {row['name']}")
            table.add_row(name, *_median(row), *compared, end_section=i == len(rows))
    return table


def _median(row: Mapping[str, Any]) -> list[str]:
    return [
        number(row["median"], 2),
        str(row["n"]),
        number(row["median_openai"], 2),
        str(row["n_openai"]),
    ]


def _against(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["–"] * 4
    return [
        f"{found['difference']:+.4f}",
        f"{found['wins']}/{found['pairs']}",
        str(found["units"]),
        f"{found['p']:.2g}",
    ]
