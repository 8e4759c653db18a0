"""The charts of the page as plain values: rows with marks at percentages of a width.

A chart is drawn by the templates in HTML and SVG, so it follows the page's colours and width. A
part that the results do not have gives an empty chart, which is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from w2s_fast.report.axis import Axis, make_axis, polyline, unit_axis
from w2s_fast.report.model_rows import (
    NOT_REPORTED,
    ModelRow,
    ceilings,
    difference_cells,
    format_number,
    further_scores,
    model_rows,
)


@dataclass(frozen=True)
class Row:
    """One row of a chart.

    Attributes:
        name: What it is about.
        kind: Role of the model: ``weak``, ``control``, ``student`` or ``ceiling``.
        text: The numbers.
        mean: Position of the main mark, or None.
        dots: Positions of small marks.
        interval: Positions of the ends of an interval, or None.
        beyond: Whether the interval continues below, and above, the axis.
        marks: Position and series of further marks, joined by a line.
    """

    name: str
    kind: str
    text: str
    mean: float | None = None
    dots: Sequence[float] = ()
    interval: tuple[float, float] | None = None
    beyond: tuple[bool, bool] = (False, False)
    marks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class RowChart:
    """Rows on one axis.

    Attributes:
        axis: The axis.
        rows: From top to bottom.
        lines: Positions of vertical reference lines.
        band: Positions of the ends of a shaded band, or None.
    """

    axis: Axis
    rows: Sequence[Row]
    lines: Sequence[float] = ()
    band: tuple[float, float] | None = None


class Point(NamedTuple):
    """A point of a plot: positions, size relative to the largest, title, and series."""

    across: float
    up: float
    size: float
    title: str
    series: str = ""


@dataclass(frozen=True)
class Plot:
    """Points and lines in a square.

    Attributes:
        name: Title.
        text: The numbers.
        x, y: Axes.
        lines: Series and points of each line.
        points: The points.
        bars: Position across, lower and upper end, and series of vertical intervals.
        keys: Name and series of what the colours mean.
    """

    name: str
    text: str
    x: Axis
    y: Axis
    lines: Sequence[tuple[str, str]] = ()
    points: Sequence[Point] = ()
    bars: Sequence[tuple[float, float, float, str]] = ()
    keys: Sequence[tuple[str, str]] = ()


def accuracy_chart(results: Mapping[str, Any]) -> RowChart:
    """Return the accuracy of every model, best first, and the gap from floor to ceiling."""
    models = model_rows(results)
    axis = make_axis([a for m in models for a in m.accuracies])
    floor, ceiling = axis(models[0].mean), axis(models[-1].mean)
    rows = [
        Row(
            m.name.removeprefix("student · "),
            _kind(m),
            format_number(m.mean),
            axis(m.mean),
            [axis(a) for a in m.accuracies] if len(m.accuracies) > 1 else (),
        )
        for m in sorted(models, key=lambda m: -m.mean)
    ]
    return RowChart(axis, rows, (floor, ceiling), (floor, ceiling) if ceiling > floor else None)


def _kind(model: ModelRow) -> str:
    if model.student:
        return "student"
    return model.name.partition(" ")[0].rstrip(":")


def pgr_chart(results: Mapping[str, Any]) -> RowChart:
    """Return the PGR of every student with its interval, largest first."""
    models = [m for m in model_rows(results) if m.student]
    known = [m.pgr for m in models if m.pgr is not None]
    values = [0.0, 1.0, *(pgr[0] for pgr in known), *(p for m in models for p in m.pgrs)]
    axis = make_axis(values, [end for pgr in known for end in pgr[1:]])
    models.sort(key=lambda m: -math.inf if m.pgr is None else -m.pgr[0])
    models.sort(key=lambda m: m.pgr is None)
    rows = [_pgr_row(m, axis) for m in models]
    return RowChart(axis, rows, (axis(0.0), axis(1.0)), (axis(0.0), axis(1.0)))


def _pgr_row(model: ModelRow, axis: Axis) -> Row:
    name = model.name.removeprefix("student · ")
    if model.pgr is None:
        return Row(name, "student", NOT_REPORTED)
    mean, low, high = model.pgr
    return Row(
        name,
        "student",
        f"{mean:.2f} {model.interval}".rstrip(),
        axis(mean),
        [axis(p) for p in model.pgrs] if len(model.pgrs) > 1 else (),
        (axis(low), axis(high)) if model.interval else None,
        (axis.beyond(low), axis.beyond(high)),
    )


_HUES = ("hue1", "hue2", "hue3", "hue4")


def gap_plot(results: Mapping[str, Any]) -> Plot | None:
    """Return PGR against the gap of every run, with intervals; None without a reported PGR."""
    runs = [r for r in results["runs"] if r["pgr"] is not None]
    if not runs:
        return None
    ends = [r[k] for r in runs for k in ("pgr_low", "pgr_high") if r[k] is not None]
    x = make_axis([0.0, *(r["gap"] for r in runs)])
    y = make_axis([0.0, 1.0, *(r["pgr"] for r in runs)], ends)
    names = list(dict.fromkeys(r["name"] for r in runs))
    # More students than colours are told apart by the titles of their points alone.
    series = dict(zip(names, _HUES, strict=False)) if 1 < len(names) <= len(_HUES) else {}
    points = [
        Point(x(r["gap"]), y(r["pgr"]), 1.0,
              f"{r['name']}, seed {r['seed']}: PGR {r['pgr']:.2f}, gap {r['gap']:.3f}",
              series.get(r["name"], ""))
        for r in runs
    ]  # fmt: skip
    bars = [
        (x(r["gap"]), y(r["pgr_low"]), y(r["pgr_high"]), series.get(r["name"], ""))
        for r in runs
        if r["pgr_low"] is not None
    ]
    return Plot("PGR against the gap", "", x, y, (), points, bars, list(series.items()))


def difference_chart(results: Mapping[str, Any]) -> RowChart | None:
    """Return the paired differences to the baseline; None for a single student."""
    rows = results.get("differences")
    if not rows:
        return None
    values = [0.0, *(r["difference"] for r in rows)]
    reach = 2 * max(max(values) - min(values), 0.02)  # of intervals that are shown whole
    ends = [r[k] for r in rows for k in ("low", "high") if r[k] is not None]
    shown = [min(max(end, min(values) - reach), max(values) + reach) for end in ends]
    axis = make_axis([*values, *shown])
    return RowChart(axis, [_difference_row(r, axis) for r in rows], (axis(0.0),))


def _difference_row(row: Mapping[str, Any], axis: Axis) -> Row:
    difference, interval, p, p_holm = difference_cells(row)
    mean, ends = axis(row["difference"]), (row["low"], row["high"])
    tail = f"p {p}, Holm {p_holm}"
    if row["low"] is None:
        return Row(row["name"], "student", f"{difference} · {tail}", mean)
    return Row(
        row["name"],
        "student",
        f"{difference} [{interval.replace(' – ', ', ')}] · {tail}",
        mean,
        interval=(axis(ends[0]), axis(ends[1])),
        beyond=(axis.beyond(ends[0]), axis.beyond(ends[1])),
    )


def agreement_chart(results: Mapping[str, Any]) -> RowChart | None:
    """Return agreement with the supervisor where it is right, and where it is wrong."""
    axis, rows = unit_axis(), []
    for s in results["summary"]:
        parts = [(s["agreement"][k], k) for k in ("weak_right", "weak_wrong")]
        marks = [(axis(value), series) for value, series in parts if value is not None]
        text = " / ".join(format_number(value, 2) for value, _ in parts)
        rows.append(Row(s["name"], "student", text, marks=marks))
    return RowChart(axis, rows) if any(row.marks for row in rows) else None


def group_chart(results: Mapping[str, Any]) -> RowChart | None:
    """Return accuracy beside the scores of groups and shifted items; None without any."""
    titles = further_scores(results)
    if not titles:
        return None
    models = [("weak supervisor", "weak", results["summary"][0])]
    models += [(s["name"], "student", s) for s in results["summary"]]
    models += [(title, "ceiling", row) for title, row in ceilings(results).items()]
    scores = [("", "accuracy"), *((f"_{key}", key) for key in titles)]
    values = [row[f"{kind}{key}"] for _, kind, row in models for key, _ in scores]
    axis = make_axis([v for v in values if v is not None])
    rows = []
    for name, kind, row in models:
        own = [(row[f"{kind}{key}"], series) for key, series in scores]
        marks = [(axis(value), series) for value, series in own if value is not None]
        rows.append(Row(name, kind, " / ".join(format_number(v) for v, _ in own), marks=marks))
    return RowChart(axis, rows)


def calibration_plots(results: Mapping[str, Any]) -> list[Plot]:
    """Return a reliability diagram for every model; empty for results without calibration."""
    summary = [s for s in results["summary"] if s.get("calibration")]
    if not summary:
        return []
    models = [("weak supervisor", summary[0]["calibration"]["weak"])]
    models += [(s["name"], s["calibration"]["student"]) for s in summary]
    models += [
        (title, row["calibration"]["ceiling"])
        for title, row in ceilings(results).items()
        if row.get("calibration")
    ]
    return [reliability_plot(name, record) for name, record in models if record]


def reliability_plot(name: str, record: Mapping[str, Any]) -> Plot:
    """Return the reliability diagram of one model.

    Args:
        name: Title.
        record: ``Predictions.calibration``.
    """
    axis, most = unit_axis(small=True), max(record["n"])
    across, up = record["confidence"], record["accuracy"]
    points = [
        Point(
            axis(c),
            axis(a),
            math.sqrt(n / most),
            f"confidence {c:.2f}, accuracy {a:.2f}, {n} items",
        )
        for c, a, n in zip(across, up, record["n"], strict=True)
    ]
    lines = [("curve", part) for part in polyline(across, up, axis, axis)]
    text = f"ECE {record['ece']:.3f}, {record['ece_noise']:.3f} by chance"
    return Plot(name, text, axis, axis, lines, points)


@dataclass(frozen=True)
class Training:
    """The training curves of one student: its loss, and what lies between 0 and 1."""

    name: str
    text: str
    loss: Plot
    shares: Plot


SHARES = ("agreement", "threshold", "coefficient")


def training_plots(results: Mapping[str, Any]) -> list[Training]:
    """Return the training curves of every student, a line for each seed."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in results.get("training", ()):
        runs.setdefault(row["name"], []).append(row)
    return [_training(name, own) for name, own in runs.items()]


def _training(name: str, runs: Sequence[Mapping[str, Any]]) -> Training:
    steps = max(run["steps"] for run in runs)
    x = Axis(0.0, float(max(steps, 1)), (0.0, float(steps)), 0)
    losses = [v for run in runs for v in run.get("loss", ()) if v is not None]
    y = make_axis(losses or [0.0])
    unit = unit_axis()

    def lines(series: str, up: Axis) -> list[tuple[str, str]]:
        drawn = (run for run in runs if any(run.get(series, ())))  # not a coefficient of 0
        return [(series, p) for run in drawn for p in polyline(run["at"], run[series], x, up)]

    shares = [line for series in SHARES for line in lines(series, unit)]
    text = f"{steps} steps"
    if losses:
        last = [run["loss"][-1] for run in runs if run.get("loss")]
        known = [v for v in last if v is not None]
        text += f", final loss {sum(known) / len(known):.3f}" if known else ""
    return Training(
        name,
        text,
        Plot(f"loss of {name}", "", x, y, lines("loss", y)),
        Plot(f"shares of {name}", "", x, unit, shares),
    )
