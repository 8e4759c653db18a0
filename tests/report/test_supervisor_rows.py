"""Supervisors on terminal and page: the numbers of results.json, and nothing without them."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from helpers.run_results import make_results
from rich.console import Console

from w2s_fast.report.check_results import problem
from w2s_fast.report.page import html_page
from w2s_fast.report.supervisor_rows import SUPERVISOR_HEADS, supervisor_lines, supervisor_rows
from w2s_fast.report.terminal import print_results


def supervised() -> dict[str, Any]:
    """Two seeds; the second has a function of its own, and refutes independence."""
    results = make_results(("xent",))
    both = {"name": "1: <free>", "coverage": 0.2, "accuracy": 0.9, "estimated_accuracy": None}
    split = {"covered": 0.6, "accuracy": 0.7, "covered_accuracy": 0.8, "constant": 0.55}
    results["supervisors"] = [
        {"seed": 0, "independence": {"refuted": False, "pairs": 0}, "sources": [both],
         "dropped": [], "transfer": split, "test": {**split, "covered_accuracy": None}},
        {"seed": 1, "independence": {"refuted": True, "pairs": 3}, "dropped": ["coin", "copy"],
         "sources": [{**both, "coverage": 0.4, "accuracy": None},
                     {**both, "name": "stump", "estimated_accuracy": 0.75}],
         "transfer": {**split, "covered": 0.8}, "test": split},
    ]  # fmt: skip
    return copy.deepcopy(results)


def test_cells_are_means_over_the_runs_of_a_name() -> None:
    rows = [dict(zip(SUPERVISOR_HEADS, r, strict=True)) for r in supervisor_rows(supervised())]
    assert rows == [
        {"supervisor": "1: <free>", "coverage": "0.300", "accuracy where it votes": "0.900",
         "estimated accuracy": "–"},
        {"supervisor": "stump", "coverage": "0.200", "accuracy where it votes": "0.900",
         "estimated accuracy": "0.750"},
    ]  # fmt: skip


def test_lines() -> None:
    transfer, test, gate, dependent = supervisor_lines(supervised())
    assert gate == "the gate leaves out coin, copy in some run or in all"
    assert transfer == (
        "supervisors vote on 0.700 of the transfer items; their posterior is right on 0.800 of "
        "those and on 0.700 of all, the largest class on 0.550"
    )
    assert "right on 0.800 of those" in test  # of the seed that has covered items
    assert dependent.startswith("supervisors depend on each other in 1 of 2 runs (up to 3 pairs)")


def test_terminal_and_page_show_them() -> None:
    results = supervised()
    assert problem(results) == ""
    page = html_page(results)
    assert "<h2>Supervisors</h2>" in page and "&lt;free&gt;" in page
    out = io.StringIO()
    print_results(results, Console(file=out, width=200))
    assert "supervisors vote on 0.700" in out.getvalue()


def test_a_run_of_one_weak_model_shows_nothing() -> None:
    results = make_results(("xent",))
    assert supervisor_rows(results) == [] and supervisor_lines(results) == []
    assert "<h2>Supervisors</h2>" not in html_page(results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("transfer"), "supervisors[0].transfer is missing"),
        (lambda row: row["test"].update(covered="x"), "supervisors[0].test.covered is 'x'"),
        (lambda row: row["sources"][0].pop("name"), "supervisors[0].sources[0].name is missing"),
        (lambda row: row.update(independence={}), "supervisors[0].independence.refuted is missing"),
    ],
)
def test_damaged_results_are_named(change: Any, message: str) -> None:
    results = supervised()
    change(results["supervisors"][0])
    assert problem(results).startswith(message)
