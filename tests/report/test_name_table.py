"""Tables show every name whole and every number, at any width of the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from helpers.run_results import make_results
from rich.cells import cell_len
from rich.console import Console

from w2s_fast.report.name_table import NameTable
from w2s_fast.report.names import printable
from w2s_fast.report.terminal import print_results

NAMES = [
    *("xent", "[red]a[/red]", "[/]", "$x$", "<b>", "a\nb", "\x1b[31m"),
    *("好的方法" * 9, "🙂" * 12, "مرحبا"),
    *(f"probe_relabel:probe=logreg,share=0.{i}|probe+logconf:aux_coef=0.5" for i in (25, 35)),
]  # fmt: skip


def printed(value: Any, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(value)
    return stream.getvalue().splitlines()


def printed_results(results: dict[str, Any], width: int) -> list[str]:
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_names_are_whole_and_lines_fit(width: int) -> None:
    lines = printed_results(make_results(NAMES), width)
    assert max(map(cell_len, lines)) <= width
    text = re.sub(r"\s", "", "".join(lines))
    for name in NAMES:
        assert re.sub(r"\s", "", printable(name)) in text
    for number in ("0.900", "0.960", "0.50", "0.40–0.60", "0.840", "0.970", "0.170"):
        assert number in text


@pytest.mark.parametrize("width", [40, 80])
def test_every_number_stands_below_its_head(width: int) -> None:
    table = NameTable("title", "name", ("first", "second", "third"), "* note")
    rows = {name: [f"{i}.123", f"{i}.4", f"-{i}.56789"] for i, name in enumerate(NAMES)}
    for name, cells in rows.items():
        table.add_row(name, *cells)
    lines = printed(table, width)
    at = next(i for i, line in enumerate(lines) if "first" in line)
    ends = [m.end() for m in re.finditer(r"first|second|third", lines[at])]
    numbers = [line for line in lines if re.search(r"\d\.123\b", line)]
    assert len(numbers) == len(rows)
    for line, cells in zip(numbers, rows.values(), strict=True):
        shift = len(line) - cell_len(line)  # wide characters
        assert [line[: end + shift].split()[-1] for end in ends] == cells
    assert lines[0] == "title" and lines[-1] == "* note"


def test_columns_that_do_not_fit_follow_in_a_further_table() -> None:
    table = NameTable("", "name", ("first", "second", "third"))
    table.add_row("a heading")
    table.add_row("alone", "1.1")
    table.add_row("both", "1.2", "2.2", "3.2")
    lines = [line.split() for line in printed(table, 20)]
    assert lines.index(["first", "second"]) < lines.index(["third"])
    assert ["1.2", "2.2"] in lines and ["3.2"] in lines
    assert lines.count(["both"]) == 2 and lines.count(["alone"]) == 1


def test_a_heading_uses_the_whole_line() -> None:
    table = NameTable("", "cell", ("weak", "student"))
    table.add_row("a title that is longer than the columns", style="bold")
    table.add_row("xent", "0.8", "0.9", indent=2, end_section=True)
    assert printed(table, 60)[1:] == [
        " cell     weak   student",
        " ───────────────────────",
        " a title that is longer than the columns",
        "   xent    0.8       0.9",
        "",
    ]
