"""Diagnostics on terminal and page: the numbers of results.json, and nothing for older results."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from helpers.run_results import make_results
from rich.console import Console

from w2s_fast.report.check_results import problem
from w2s_fast.report.diagnostic_rows import (
    MISFIT_HEADS,
    WEAK_LABEL_HEADS,
    alarm_lines,
    diagnostic_lines,
    misfit_rows,
    weak_label_rows,
)
from w2s_fast.report.page import html_page
from w2s_fast.report.terminal import print_results

MISFIT = {"squared": 0.11, "kl_student_weak": 0.22, "kl_weak_student": 0.33, "disagreement": 0.44}
BEFORE = {"ece": 0.12, "ece_noise": 0.02, "nll": 0.53, "brier": 0.3}
AFTER = {"ece": 0.06, "ece_noise": 0.03, "nll": 0.41, "brier": 0.2}
CALIBRATION = {"rule": "platt", "applied": True, "accuracy": 0.77, "before": BEFORE, "after": AFTER}


def diagnosed(**calibration: Any) -> dict[str, Any]:
    """Return results with every diagnostic: two seeds, alarms of the first student at both."""
    results = make_results(("xent", "logconf"))
    for row in results["summary"]:
        row |= {"misfit": MISFIT, "gain": {"brier": 0.05, "nll": 0.06}}
    for i, run in enumerate(results["runs"]):
        alarm = 40 * (1 + run["seed"]) if run["name"] == "xent" else None
        run["fit"] = {"steps": [40, 80, 120 + i], "alarm_step": alarm}
    results["weak_labels"] = [
        {"seed": 0, "calibration": {**CALIBRATION, **calibration},
         "overlap": {"density": 0.25, "reason": None}},
        {"seed": 1, "calibration": {**CALIBRATION, **calibration},
         "overlap": {"density": None, "reason": "all alike"}},
    ]  # fmt: skip
    return json.loads(json.dumps(results))  # no two places share an object


TRUST = {
    "seed": 1, "name": "trust+xent", "n_right": 90, "n_wrong": 30, "auroc": 0.81,
    "auroc_interval": [0.7, 0.9], "brier_gain": 0.04, "brier_gain_interval": [-0.01, 0.09],
}  # fmt: skip


def test_a_trust_model_has_a_line() -> None:
    results = {**diagnosed(), "trust": [TRUST]}
    assert problem(results) == ""
    (line,) = [line for line in diagnostic_lines(results) if "trust" in line]
    assert line == (
        "trust+xent, seed 1: P(label right) has AUROC 0.810 (0.700 – 0.900; 0.5 knows nothing) and "
        "a gain in Brier score of 0.040 (-0.010 – 0.090) over a constant, cross-fitted on 90 right "
        "and 30 wrong labels of the weak split"
    )
    for key, value in (("auroc", None), ("auroc_interval", [0.5]), ("name", 3)):
        broken = problem({**results, "trust": [{**TRUST, key: value}]})
        assert broken.startswith(f"trust[0].{key} "), broken


def test_cells_are_under_their_heads() -> None:
    results = diagnosed()
    row = dict(zip(MISFIT_HEADS, misfit_rows(results)[0], strict=True))
    assert row == {
        "student": "xent", "disagreement": "0.440", "squared misfit": "0.110",
        "gain in Brier score": "0.050", "KL(student ‖ weak)": "0.220", "gain in NLL": "0.060",
        "KL(weak ‖ student)": "0.330",
    }  # fmt: skip
    rows = [dict(zip(WEAK_LABEL_HEADS, r, strict=True)) for r in weak_label_rows(results)]
    assert rows[0] == {
        "seed": "0", "calibration": "platt", "cross-fitted accuracy": "0.770",
        "ECE before": "0.120", "ECE after": "0.060", "ECE of noise": "0.020",
        "NLL before": "0.530", "NLL after": "0.410",
        "overlap density": "0.250",
    }  # fmt: skip
    assert rows[1]["overlap density"] == "–"
    results["weak_labels"][0]["calibration"] = None
    assert weak_label_rows(results)[0] == ["0", *["–"] * 7, "0.250"]


def test_lines_name_the_steps_and_their_seeds() -> None:
    lines = diagnostic_lines(diagnosed())
    assert lines == [
        "calibration of the weak labels (platt): ECE 0.120 to 0.060, NLL 0.530 to 0.410, "
        "cross-fitted on the weak split",
        "overlap density of the transfer set: 0.250",
        "seed 1: no overlap density: all alike",
        "xent starts to fit errors of the weak labels at step 40 of 120 (seed 0), "
        "80 of 121 (seed 1)",
        "logconf: no sign that the student fits errors of the weak labels",
    ]
    lines = diagnostic_lines(diagnosed(applied=False, after=None))
    assert lines[0].startswith(
        "calibration of the weak labels (platt, not applied): ECE 0.120 to –, NLL 0.530 to –"
    )


def test_terminal_and_page_show_them() -> None:
    results = diagnosed()
    screen = io.StringIO()
    print_results(results, Console(file=screen, width=300))
    page = html_page(results)
    for line in diagnostic_lines(results):
        assert line in screen.getvalue() and line in page
    assert "<h2>Diagnostics without true labels</h2>" in page
    for cell in ("0.440", "0.330", "0.770"):
        assert f"<td>{cell}</td>" in page
    assert problem(results) == ""


def test_results_without_diagnostics_are_shown_as_before() -> None:
    results = make_results()
    assert diagnostic_lines(results) == misfit_rows(results) == weak_label_rows(results) == []
    assert "Diagnostics" not in html_page(results)
    results["runs"][0]["fit"] = None
    assert alarm_lines(results) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("weak_labels", 0, "seed"), "x", "weak_labels[0].seed is 'x', expected an integer"),
        (("weak_labels", 0, "calibration", "before", "nll"), None,
         "weak_labels[0].calibration.before.nll is None, expected a number"),
        (("weak_labels", 1, "calibration", "after", "ece"), "a",
         "weak_labels[1].calibration.after.ece is 'a', expected a number"),
        (("weak_labels", 1, "overlap", "reason"), 3, "weak_labels[1].overlap.reason is 3"),
        (("summary", 0, "misfit", "squared"), "far", "summary[0].misfit.squared is 'far'"),
        (("summary", 1, "gain"), None, "summary[1].gain is None, expected an object"),
        (("runs", 2, "fit", "alarm_step"), 1.5, "runs[2].fit.alarm_step is 1.5"),
        (("runs", 0, "fit", "steps"), [], "runs[0].fit.steps is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    results = diagnosed()
    place: Any = results
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert message in problem(results)
