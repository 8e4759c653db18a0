"""Draw the figure of a sweep: PGR against the gap, PGR and agreement by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.report.figure import (
    NOT_MATH,
    draw_bounds,
    drawable,
    label_rows,
    limits,
    render,
    stack_rows,
    style_axes,
)
from w2s_fast.report.model_rows import GREY, NOT_REPORTED, PALETTE, level_text, pgr_ends
from w2s_fast.report.names import fit_names, printable, wrap_name
from w2s_fast.sweeps.statistics import student_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

_LARGE_POINTS = 24  # up to this many points, each is drawn large
_NAMED_CELLS = 6  # cells without a PGR that are named below the figure
_NOTE_CELLS = 160  # letters in a line below the figure
_PITCH = 0.72  # inches from row to row
_MIN_ROWS = 4.0  # fewer methods would stand far apart
_MARKERS = "oDsv^PX"  # one more than colours: each pair comes back after their product

Cells = Sequence[Mapping[str, Any]]


def sweep_figure(results: Mapping[str, Any], kind: str) -> bytes:
    """Return the figure of a sweep as "png" or "svg" bytes.

    Args:
        results: The contents of sweep.json, with at least one cell.
        kind: "png" or "svg".
    """
    cells = results["cells"]
    methods = student_names(cells)
    labels = fit_names(methods, 24, glyphs=drawable(kind))[::-1]  # the first method is on top
    centres, height = stack_rows(labels, _PITCH)
    rows = dict(zip(methods, reversed(centres), strict=True))
    colors = [_style(i)["color"] for i in reversed(range(len(methods)))]

    def paint(figure: Figure) -> None:
        gaps, pgrs, agreement = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
        for ax in (pgrs, agreement):
            ax.set_yticks([])
            spare = max(0.0, _MIN_ROWS - height) / 2
            ax.set_ylim(-spare, height + 0.2 + spare)
        _draw_gaps(gaps, cells, methods)
        _draw_pgrs(pgrs, cells, rows)
        _draw_agreement(agreement, cells, rows)
        label_rows(pgrs, centres, labels, colors)  # the legend of the whole figure
        if note := cells_without_pgr(cells):
            lines = wrap_name(printable(note, drawable(kind)), _NOTE_CELLS)
            style: dict[str, Any] = {"x": 0.012, "ha": "left", "size": 8.5, "color": "#5c6573"}
            figure.supxlabel("\n".join(lines), **NOT_MATH, **style)

    return render(paint, (13.2, 2.2 + _PITCH * max(height, _MIN_ROWS)), kind, _title(results))


def cells_without_pgr(cells: Cells) -> str:
    """Name the cells that have no point because their weak-ceiling gap is too small."""
    names = [
        f"{cell['task']}, {cell['weak']} → {cell['student']}"
        + ("" if len(students) == len(cell["summary"]) else f" ({', '.join(students)})")
        for cell in cells
        if (students := [s["name"] for s in cell["summary"] if s["pgr_mean"] is None])
    ]
    if not names:
        return ""
    more = f"; and {len(names) - _NAMED_CELLS} more" if len(names) > _NAMED_CELLS else ""
    return f"PGR {NOT_REPORTED}, the gap is too small: {'; '.join(names[:_NAMED_CELLS])}{more}"


def _title(results: Mapping[str, Any]) -> str:
    cells, seeds = results["cells"], len(results["config"]["run"]["seeds"])
    tasks = len({cell["task"] for cell in cells})
    counts = ((tasks, "task"), (len(cells), "cell"), (seeds, "seed"))
    return "Weak to strong: " + ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)


def _style(i: int) -> dict[str, Any]:
    """Return colour and marker of the i-th method; both change, for who cannot see the colours."""
    return {"color": PALETTE[i % len(PALETTE)], "marker": _MARKERS[i % len(_MARKERS)]}


def _with_pgr(cells: Cells, name: str) -> list[Mapping[str, Any]]:
    """Return the summaries of a method that have a PGR."""
    rows = [s for c in cells for s in c["summary"] if s["name"] == name]
    return [s for s in rows if s["pgr_mean"] is not None]


def _draw_gaps(ax: Axes, cells: Cells, methods: Sequence[str]) -> None:
    """Draw PGR against ceiling - floor, with intervals; methods of one cell side by side."""
    from matplotlib.transforms import ScaledTranslation

    large = len(cells) * len(methods) <= _LARGE_POINTS
    step = min(7.0 if large else 3.5, 30 / len(methods)) / 72  # inches
    draw_bounds(ax.axhline, 0.0, 1.0)
    _set_limits(ax, [s for name in methods for s in _with_pgr(cells, name)])
    for i, name in enumerate(methods):
        summaries, style = _with_pgr(cells, name), _style(i)
        gap = [s["ceiling"] - s["weak"] for s in summaries]
        shift = ScaledTranslation((i - (len(methods) - 1) / 2) * step, 0, ax.figure.dpi_scale_trans)
        place = ax.transData + shift
        ends = np.array([_ends(s) for s in summaries]).reshape(-1, 2).clip(*_far(ax)).T
        ax.vlines(gap, *ends, color=style["color"], lw=2.2 if large else 1.2,
                  alpha=0.85 if large else 0.35, transform=place)  # fmt: skip
        ax.scatter(gap, [s["pgr_mean"] for s in summaries], s=62 if large else 26,
                   edgecolor="white", lw=0.9, zorder=3, transform=place, **style)  # fmt: skip
        _mark_cut_intervals(ax, summaries, style["color"], place)
    ax.set_xlabel("gap: accuracy of ceiling − accuracy of weak supervisor")
    ax.set_ylabel(f"performance gap recovered, {level_text()} interval")
    style_axes(ax, "both")


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ends of a PGR's interval; its value without one."""
    return pgr_ends(row) or (row["pgr_mean"], row["pgr_mean"])


def _far(ax: Axes) -> tuple[float, float]:
    """Return values beyond both ends of the vertical axis, to which infinite ends are drawn."""
    low, high = ax.get_ylim()
    return 2 * low - high, 2 * high - low


def _set_limits(ax: Axes, summaries: Sequence[Mapping[str, Any]]) -> None:
    """Show all points, and 0 and 1."""
    if not summaries:
        ax.annotate("no gap is large enough", (0.5, 0.5), ha="center", va="center", color=GREY)
        ax.set(xlim=(0, 1), ylim=(-0.15, 1.15))
        return
    low, high = limits([s["ceiling"] - s["weak"] for s in summaries])
    ax.set_xlim(max(0.0, low), high)
    ends = [end for s in summaries for end in _ends(s)]
    ax.set_ylim(limits([*(s["pgr_mean"] for s in summaries), 0.0, 1.0], ends))


def _mark_cut_intervals(
    ax: Axes, summaries: Sequence[Mapping[str, Any]], color: str, place: Transform
) -> None:
    """Draw an arrow head where an interval leaves the axes."""
    low, high = ax.get_ylim()
    below = [s for s in summaries if _ends(s)[0] < low]
    above = [s for s in summaries if _ends(s)[1] > high]
    for cut, edge, marker in ((below, low, "v"), (above, high, "^")):
        for s in cut:
            gap = s["ceiling"] - s["weak"]
            ax.plot([gap], [edge], marker, ms=6, color=color, clip_on=False, transform=place)


def _draw_pgrs(ax: Axes, cells: Cells, rows: Mapping[str, float]) -> None:
    """Draw each method's PGRs and their median, which the table prints too."""
    draw_bounds(ax.axvline, 0.0, 1.0)
    for i, (name, y) in enumerate(rows.items()):
        runs = [r for c in cells for r in c["runs"] if r["name"] == name]
        values = [r["pgr"] for r in runs if r["pgr"] is not None]
        if values:
            _draw_strip(ax, values, y, i, float(np.median(values)))
        else:
            ax.annotate(NOT_REPORTED, (0.5, y), ha="center", va="center", color=GREY)
    ax.set_xlabel("PGR by cell and seed; bars: medians")
    ax.margins(x=0.08)
    style_axes(ax)


def _draw_agreement(ax: Axes, cells: Cells, rows: Mapping[str, float]) -> None:
    """Draw how often student and supervisor agree, where the supervisor is right and wrong."""
    for i, (name, y) in enumerate(rows.items()):
        agreements = [s["agreement"] for c in cells for s in c["summary"] if s["name"] == name]
        for part in ("weak_right", "weak_wrong"):
            values = [a[part] for a in agreements if a[part] is not None]
            if values:
                mean = float(np.mean(values))
                _draw_strip(ax, values, y, i, mean, filled=part == "weak_right")
    ax.set_xlim(-0.04, 1.04)
    ax.set_xlabel("agreement with the supervisor:\nfilled where it is right, open where wrong")
    style_axes(ax)


def _draw_strip(
    ax: Axes, values: Sequence[float], y: float, i: int, middle: float, *, filled: bool = True
) -> None:
    """Draw the points of the i-th method, spread a little, and a bar at their middle."""
    style = _style(i)
    spread = 0.17 if len(values) > 3 else 0.0
    heights = y + np.random.default_rng(0).uniform(-spread, spread, len(values))
    face = style["color"] if filled else "white"
    ax.scatter(values, heights, s=24, alpha=0.5, facecolor=face, edgecolor=style["color"], lw=1,
               marker=style["marker"], zorder=2)  # fmt: skip
    ax.plot([middle] * 2, [y - 0.27, y + 0.27], color=style["color"], lw=3.2, zorder=3,
            solid_capstyle="round")  # fmt: skip
    ax.annotate(f"{middle:.2f}", (middle, y + 0.3), ha="center", va="bottom", size=9,
                color=style["color"])  # fmt: skip
