"""Students made of weights of others: on terminal and page, and what of them cannot be shown."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from helpers.run_results import make_results
from rich.console import Console

from w2s_fast.report.check_results import problem
from w2s_fast.report.merge_rows import merge_lines, sweep_rows
from w2s_fast.report.page import html_page
from w2s_fast.report.terminal import print_results

SOUP = {"seed": 0, "name": "soup+xent", "how": "soup", "members": 3, "chosen": [0, 1, 2]}
GREEDY = {
    "seed": 1, "name": "greedy_soup+xent", "how": "greedy_soup", "members": 3, "chosen": [2, 0],
    "member_agreement": [0.8, 0.7, 0.9], "agreement": 0.95,
}  # fmt: skip
SWEPT = {
    "seed": 1, "name": "interpolate+xent", "how": "interpolation", "alphas": [0.0, 0.5, 1.0],
    "agreement": [0.6, 0.92, 0.9], "alpha": 0.5, "held_out": 40, "accuracy": [0.5, 0.81, 0.8],
}  # fmt: skip


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    return {**make_results(), "merged": copy.deepcopy([*rows])}


def test_lines_and_cells() -> None:
    made = results(SOUP, GREEDY, SWEPT)
    assert problem(made) == ""
    assert merge_lines(made) == [
        "soup+xent, seed 0: the mean of the weights of 3 students",
        "greedy_soup+xent, seed 1: the mean of the weights of 2 of 3 students, which agrees with "
        "0.950 of the held-out weak labels; alone they agree with 0.900, 0.800",
        "interpolate+xent, seed 1: alpha 0.5 agrees best with the 40 held-out weak labels (0.920; "
        "0.600 before and 0.900 after the training)",
    ]
    assert sweep_rows(made) == [
        ["interpolate+xent", "1", "0", "0.600", "0.500", ""],
        ["interpolate+xent", "1", "0.5", "0.920", "0.810", "yes"],
        ["interpolate+xent", "1", "1", "0.900", "0.800", ""],
    ]
    (row,) = sweep_rows(results({**SWEPT, "alphas": [0.5], "agreement": [0.9], "accuracy": None}))
    assert row[4] == "–"


def test_terminal_and_page_show_them_where_there_are_any() -> None:
    for made, shown in ((results(SOUP, SWEPT), True), (make_results(), False)):
        out = io.StringIO()
        print_results(made, Console(file=out, width=160))
        page = html_page(made)
        assert ("Interpolation with the initial weights" in out.getvalue()) == shown
        assert ("the mean of the weights of 3 students" in out.getvalue()) == shown
        assert ("<h2>Means of weights</h2>" in page) == shown
        assert ("the mean of the weights of 3 students." in page) == shown


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (SOUP, {"chosen": [3]}, "merged[0].chosen has a member that is none of 3"),
        (SOUP, {"members": None}, "merged[0].members is None, expected an integer"),
        (GREEDY, {"member_agreement": [0.5]}, "member_agreement has not one number for each"),
        (SWEPT, {"agreement": [0.5]}, "merged[0].agreement has 1 numbers for 3 coefficients"),
        (SWEPT, {"accuracy": [0.5]}, "merged[0].accuracy has 1 numbers for 3 coefficients"),
        (SWEPT, {"alpha": 0.7}, "merged[0].alpha is none of its coefficients"),
    ],
)
def test_damage_is_named(row: dict[str, Any], change: dict[str, Any], message: str) -> None:
    assert message in problem(results({**row, **change}))
