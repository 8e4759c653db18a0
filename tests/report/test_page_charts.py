"""Axes have round ticks that are told apart; charts place what results say."""

from __future__ import annotations

import math

import pytest
from helpers.run_results import add_page_parts, make_results

from w2s_fast.report.axis import Axis, make_axis, polyline, unit_axis
from w2s_fast.report.page_charts import (
    accuracy_chart,
    agreement_chart,
    difference_chart,
    gap_plot,
    pgr_chart,
    reliability_plot,
    training_plots,
)


@pytest.mark.parametrize(
    "values",
    [[0.8, 1.0], [-0.057, 0.0], [0.0, 1.04], [0.7742, 0.7751], [-0.05, 0.0], [5.0], [0, 3e6]],
)
def test_ticks_are_inside_and_their_labels_differ(values: list[float]) -> None:
    axis = make_axis(values)
    assert all(0 < axis(v) < 100 for v in values)
    labels = [label for _, label in axis.marks]
    assert 1 <= len(set(labels)) == len(labels) <= 7 and "-0.0" not in labels
    for tick, label in zip(axis.ticks, labels, strict=True):
        assert float(label) == pytest.approx(tick, abs=1e-9)


def test_an_interval_without_end_does_not_move_an_axis() -> None:
    assert make_axis([0.0, 1.0], [-math.inf, math.inf]) == make_axis([0.0, 1.0])
    axis = make_axis([0.0, 1.0], [-40.0])
    assert axis.low > -1 and axis(-40.0) == 0 and axis.beyond(-40.0) and not axis.beyond(0.5)


def test_a_line_breaks_where_a_value_is_missing() -> None:
    unit, steps = unit_axis(), Axis(0.0, 4.0, (), 0)
    assert polyline([1, 2, 3, 4], [None, 0.5, None, 1.0], steps, unit) == ["50,50", "100,0"]
    assert polyline([1, 2], [0.0, 0.25], steps, unit) == ["25,100 50,75"]


def test_rows_run_from_best_to_worst() -> None:
    chart = accuracy_chart(make_results(control=True))
    assert [r.name for r in chart.rows] == [
        "ceiling", "logconf:aux_coef=0.3", "xent", "control: no pretraining", "weak supervisor"
    ]  # fmt: skip
    assert [r.kind for r in chart.rows] == ["ceiling", "student", "student", "control", "weak"]
    means = [r.mean or 0 for r in chart.rows]
    assert means == sorted(means, reverse=True) and chart.band == (means[-1], means[0])
    pgr = pgr_chart(make_results())
    assert [r.text for r in pgr.rows] == ["0.80 [0.70, 0.90]", "0.50 [0.40, 0.60]"]
    low, high = pgr.rows[0].interval or (0, 0)
    assert low == pgr.axis(0.7) and high == pgr.axis(0.9) and pgr.rows[0].beyond == (False, False)


def test_an_interval_beyond_the_axis_has_an_arrow() -> None:
    results = make_results()
    results["summary"][0] |= {"pgr_low": None, "pgr_high": None, "pgr_unbounded": True}
    row = next(r for r in pgr_chart(results).rows if r.name == "xent")
    assert row.beyond == (True, True) and row.interval == (0, 100)


def test_a_pgr_that_is_not_reported_has_no_mark_and_stands_last() -> None:
    results = make_results()
    results["summary"][1]["pgr_mean"] = None
    rows = pgr_chart(results).rows
    assert rows[-1].text == "not reported" and rows[-1].mean is None
    assert gap_plot(make_results(refused=True)) is None


def test_the_gap_plot_has_every_reported_run() -> None:
    results = make_results()
    results["runs"][0]["pgr"] = None
    plot = gap_plot(results)
    assert plot is not None and len(plot.points) == len(plot.bars) == 3
    assert plot.points[0][:2] == (plot.x(0.2), plot.y(0.5))


@pytest.mark.parametrize(("students", "coloured"), [(1, False), (2, True), (4, True), (5, False)])
def test_few_students_have_colours_in_the_gap_plot(students: int, coloured: bool) -> None:
    results = make_results()
    run = results["runs"][0]
    results["runs"] = [{**run, "name": f"m{i}", "seed": s} for s in (0, 1) for i in range(students)]
    plot = gap_plot(results)
    assert plot is not None
    assert [name for name, _ in plot.keys] == [f"m{i}" for i in range(students * coloured)]
    series = [p.series for p in plot.points]
    assert series == [bar[3] for bar in plot.bars] and series[:students] == series[students:]
    assert len(set(series[:students])) == (students if coloured else 1)


def test_charts_without_values_are_left_out() -> None:
    results = make_results(["xent"])
    assert difference_chart(results) is None and training_plots(results) == []
    for row in results["summary"]:
        row["agreement"] = dict.fromkeys(("all", "weak_right", "weak_wrong"))
    assert agreement_chart(results) is None


def test_a_reliability_diagram_has_its_bins() -> None:
    record = {"ece": 0.05, "ece_noise": 0.01, "n": [25, 100], "confidence": [0.6, 0.9],
              "accuracy": [0.5, 0.95]}  # fmt: skip
    plot = reliability_plot("xent", record)
    assert [p[:3] for p in plot.points] == [(60, 50, 0.5), (90, 95, 1)]  # area is by items
    assert plot.lines == [("curve", "60,50 90,5")]
    assert plot.text == "ECE 0.050, 0.010 by chance"


def test_a_coefficient_of_zero_is_not_drawn() -> None:
    results = add_page_parts(make_results(["xent"]))
    (training,) = training_plots(results)
    assert {series for series, _ in training.shares.lines} == {
        "agreement", "threshold", "coefficient"
    }  # fmt: skip
    assert len(training.loss.lines) == 2 and "final loss 0.450" in training.text  # two seeds
    for row in results["training"]:
        row["coefficient"] = [0.0] * 4
    (training,) = training_plots(results)
    assert "coefficient" not in {series for series, _ in training.shares.lines}
