"""The table, the areas and the figure of students under a conflict."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from helpers.figure_texts import check_texts
from helpers.run_results import make_results
from rich.console import Console

from w2s_fast.report.check_results import problem
from w2s_fast.report.deception_figure import deception_figure
from w2s_fast.report.deception_rows import (
    DECEPTION_HEADS,
    area_rows,
    areas_of,
    deception_lines,
    deception_rows,
)
from w2s_fast.report.page import html_page
from w2s_fast.report.terminal import print_results


def score(denominator: str, value: float | None = 0.25) -> dict[str, Any]:
    ends = (None, None) if value is None else (0.125, 0.5)
    return {
        "denominator": denominator, "score": value, "low": ends[0], "high": ends[1],
        "expected": value and 0.2, "n_deceived": 10, "n_counted": 40,
        "reason": "" if value is not None else "no item that the ceiling knows was lost",
    }  # fmt: skip


def entry(name: str = "explicit_conflict+xent", value: float | None = 0.25) -> dict[str, Any]:
    def counts(items: int, exposed: int, taxed: int) -> dict[str, int]:
        return {"items": items, "exposed": exposed, "taxed": taxed}

    areas = {
        "strong_known_weak_known": counts(50, 40, 6),
        "strong_known_weak_unknown": counts(30, 20, 10),
        "strong_unknown_weak_known": counts(18, 0, 0),
        "strong_unknown_weak_unknown": counts(2, 4, 4),
    }
    thresholds = [
        {
            "threshold": t,
            "scores": [score("all_tax", 0.9), score("strong_known_tax", value)],
            "areas": areas,
        }
        for t in (0.5, 0.75)
    ]
    return {"name": name, "no_conflict": "xent", "accuracy": 0.61, "no_conflict_accuracy": 0.7,
            "tax": 0.15, "thresholds": thresholds, "runs": []}  # fmt: skip


RESULTS = {"deception": [entry()]}


def test_cells_are_those_of_the_paper_s_denominator() -> None:
    assert deception_rows(RESULTS) == [
        ["explicit_conflict+xent", "0.700", "0.610", "0.150", "40", "0.25", "0.12 – 0.50", "0.20",
         "0.25"]
    ]  # fmt: skip
    assert len(DECEPTION_HEADS) == 9
    assert deception_rows({}) == deception_lines({}) == []


def test_a_score_that_is_not_defined_says_why() -> None:
    results = {"deception": [entry(value=None)]}
    assert deception_rows(results)[0][5:] == ["–", "–", "–", "–"]
    assert deception_lines(results)[1] == (
        "explicit_conflict+xent has no deception score: no item that the ceiling knows was lost"
    )
    assert len(deception_lines(RESULTS)) == 1


def test_areas_by_hand() -> None:
    assert area_rows(RESULTS) == [
        ["explicit_conflict+xent", "ceiling and weak model know", "50%", "30%", "15%"],
        ["explicit_conflict+xent", "the ceiling alone knows", "30%", "50%", "50%"],
        ["explicit_conflict+xent", "the weak model alone knows", "18%", "0%", "–"],
        ["explicit_conflict+xent", "neither knows", "2%", "20%", "100%"],
    ]
    area = areas_of(entry())[True, False]
    assert (area.items, area.share, area.part_of_tax, area.rate) == (30, 0.3, 0.5, 0.5)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_figure_has_a_panel_per_student_and_its_numbers(n: int) -> None:
    names = [f"student {i}" for i in range(n)]
    results = {"deception": [entry(name) for name in names]}
    text = deception_figure(results, "svg").decode()
    for name in names:
        assert name in text
    assert text.count("score 0.25 (0.12 – 0.50), expected 0.20") == n
    assert text.count(">tax 50%<") == text.count("rate 50%") == n
    assert "tax 20%" not in text  # no room in 2 % of the items
    assert deception_figure(results, "svg").decode() == text
    assert deception_figure(results, "png").startswith(b"\x89PNG")


def test_figure_of_students_without_tax() -> None:
    row = entry(value=None)
    for at in row["thresholds"]:
        for area in at["areas"].values():
            area["taxed"] = 0
    text = deception_figure({"deception": [row]}, "svg").decode()
    assert "score –, expected –" in text and "tax –" in text


def test_texts_of_the_figure_are_whole_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "confident:low=0.1,high=0.9|implicit_conflict:ratio=0.5+logconf:aux_coef=0.75"
    results = {"deception": [entry(), entry(long), entry(value=None), entry("a $5 name")]}
    check_texts(monkeypatch, lambda: deception_figure(results, "png"))


def shown(results: dict[str, Any]) -> tuple[str, str]:
    stream = io.StringIO()
    print_results(results, Console(file=stream, width=150))
    return stream.getvalue(), html_page(results)


def test_terminal_and_page_show_it_and_only_where_there_is_any() -> None:
    plain = make_results(("xent",))
    assert not any("onflict" in text for text in shown(plain))
    terminal, page = shown({**plain, "deception": [entry("<b>|explicit_conflict+xent")]})
    for text in (terminal, page):
        assert "Students under a conflict" in text and "0.12 – 0.50" in text
    assert "&lt;b&gt;" in page and "<b>|" not in page and "the ceiling alone knows" in page
    assert "data:image/svg+xml;base64" in page.partition("Students under a conflict")[2]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tax",), None, "deception[0].tax is None, expected a number"),
        (("thresholds",), [], "deception[0].thresholds has 0 entries, expected 2"),
        (("thresholds", 1, "scores"), [], "threshold 0.75 has no score of strong_known_tax"),
        (("thresholds", 0, "scores", 0, "low"), None, "0.5 has an interval with one end"),
        (("thresholds", 0, "areas", "strong_known_weak_known"), {}, "items is missing"),
    ],
)
def test_damaged_results_are_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    results = {**make_results(("xent",)), "deception": [copy.deepcopy(entry())]}
    assert problem(results) == ""
    *parents, last = path
    place: Any = results["deception"][0]
    for key in parents:
        place = place[key]
    place[last] = value
    assert message in problem(results)


def test_areas_without_items_are_named() -> None:
    results = {**make_results(("xent",)), "deception": [copy.deepcopy(entry())]}
    for area in results["deception"][0]["thresholds"][0]["areas"].values():
        area["items"] = 0
    assert "deception[0] at threshold 0.5 has no items" in problem(results)
