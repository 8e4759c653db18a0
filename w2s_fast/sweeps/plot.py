"""The plot of a sweep: PGR against the gap, agreement with the supervisor; a colour a method."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from w2s_fast.report.plot import DPI, STYLE
from w2s_fast.report.rows import DARK, GREY, PALETTE
from w2s_fast.sweeps.statistics import names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 24  # points of a plot up to which each is drawn large
_LISTED = 6  # refused pairs that are named below the plot
_WIDEST = 24  # letters of a line of a method's name
_ROWS = 4  # at least; fewer methods would stand far apart
_MARKERS = "oDsv^P"


def render(results: Mapping[str, Any], kind: str) -> bytes:
    """Return the plot as "png" or "svg" bytes.

    Args:
        results: What sweep.json holds, with at least one cell.
        kind: Of file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    cells = results["cells"]
    methods = names(cells)
    height = 2.2 + 0.72 * max(len(methods), _ROWS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13.2, height), layout="constrained", dpi=DPI)
        gaps, ratios, agrees = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
        ratios.sharey(agrees)
        _gaps(gaps, cells, methods)
        _ratios(ratios, cells, methods)
        _agreement(agrees, cells, methods)
        _rows(ratios, methods)
        agrees.tick_params(labelleft=False)
        head = {"ha": "left", "weight": "bold", "size": 12.5, "color": "#1d2129"}
        figure.suptitle(_title(results), x=0.012, **head)
        if note := refused(cells):
            figure.supxlabel(note, x=0.012, ha="left", size=8.5, color="#5c6573")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def refused(cells: Sequence[Mapping[str, Any]]) -> str:
    """Name what has no point because its ceiling is not clearly above its floor."""
    found = [
        f"{cell['task']}, {cell['weak']} → {cell['student']}"
        + ("" if len(rows) == len(cell["summary"]) else f" ({', '.join(rows)})")
        for cell in cells
        if (rows := [s["name"] for s in cell["summary"] if s["pgr_mean"] is None])
    ]
    if not found:
        return ""
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    text = f"No PGR, the gap is too small: {'; '.join(found[:_LISTED])}{more}"
    return "\n".join(textwrap.wrap(text, 170))


def _title(results: Mapping[str, Any]) -> str:
    cells, seeds = results["cells"], len(results["config"]["run"]["seeds"])
    tasks = len({cell["task"] for cell in cells})
    counts = ((tasks, "task"), (len(cells), "cell"), (seeds, "seed"))
    words = ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)
    return f"Weak to strong: {words}"


def _style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th method; colours come again with another marker."""
    marker = _MARKERS[i // len(PALETTE) % len(_MARKERS)]
    return {"color": PALETTE[i % len(PALETTE)], "marker": marker}


def _shown(cells: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The summaries of a method that have a PGR."""
    rows = [s for c in cells for s in c["summary"] if s["name"] == name]
    return [s for s in rows if s["pgr_mean"] is not None]


def _gaps(ax: Axes, cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Draw PGR against ceiling - floor, with intervals; methods of one cell side by side."""
    from matplotlib.transforms import ScaledTranslation

    few = len(cells) * len(methods) <= _FEW
    step = min(7.0 if few else 3.5, 30 / len(methods)) / 72  # inches
    for value, color in ((0.0, GREY), (1.0, DARK)):
        ax.axhline(value, color=color, lw=1, ls=(0, (4, 3)), zorder=1)
    for i, name in enumerate(methods):
        shown, style = _shown(cells, name), _style(i)
        x = [s["ceiling"] - s["weak"] for s in shown]
        shift = ScaledTranslation((i - (len(methods) - 1) / 2) * step, 0, ax.figure.dpi_scale_trans)
        place = ax.transData + shift
        ends = ([s["pgr_low"] for s in shown], [s["pgr_high"] for s in shown])
        ax.vlines(x, *ends, color=style["color"], lw=2.2 if few else 1.2,
                  alpha=0.85 if few else 0.35, transform=place)  # fmt: skip
        ax.scatter(x, [s["pgr_mean"] for s in shown], s=62 if few else 26, edgecolor="white",
                   lw=0.9, zorder=3, transform=place, **style)  # fmt: skip
    _limits(ax, [s for name in methods for s in _shown(cells, name)])
    ax.set_xlabel("gap: accuracy of ceiling − accuracy of supervisor")
    ax.set_ylabel("performance gap recovered, 95 % interval")
    _plain(ax, "both")


def _limits(ax: Axes, shown: Sequence[Mapping[str, Any]]) -> None:
    """Show all points, and 0 and 1; intervals of small gaps are wide and may leave the plot."""
    if not shown:
        ax.annotate("no gap is large enough", (0.5, 0.5), ha="center", va="center", color=GREY)
        ax.set(xlim=(0, 1), ylim=(-0.15, 1.15))
        return
    gaps = [s["ceiling"] - s["weak"] for s in shown]
    ends = [*(s["pgr_mean"] for s in shown), 0.0, 1.0]
    air, side = 0.15 * (max(ends) - min(ends)), 0.02 + 0.08 * (max(gaps) - min(gaps))
    ax.set_ylim(min(ends) - air, max(ends) + air)
    ax.set_xlim(max(0.0, min(gaps) - side), max(gaps) + side)


def _ratios(ax: Axes, cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Draw each method's PGRs and their median, which is the one of the table."""
    for value, color in ((0.0, GREY), (1.0, DARK)):
        ax.axvline(value, color=color, lw=1, ls=(0, (4, 3)), zorder=1)
    for i, name in enumerate(methods):
        runs = [r for c in cells for r in c["runs"] if r["name"] == name]
        values = [r["pgr"] for r in runs if r["pgr"] is not None]
        y = len(methods) - 1 - i
        if values:
            _strip(ax, values, y, i, float(np.median(values)))
        else:
            ax.annotate("refused", (0.5, y), ha="center", va="center", color=GREY)
    ax.set_xlabel("PGR by cell and seed; bars: medians")
    ax.margins(x=0.08)
    _plain(ax, "x")


def _agreement(ax: Axes, cells: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> None:
    """Draw how often a student says what its supervisor says, where that is right and wrong."""
    for i, name in enumerate(methods):
        rows = [s["agreement"] for c in cells for s in c["summary"] if s["name"] == name]
        for part in ("weak_right", "weak_wrong"):
            values = [r[part] for r in rows if r[part] is not None]
            if values:
                mean = float(np.mean(values))
                _strip(ax, values, len(methods) - 1 - i, i, mean, filled=part == "weak_right")
    ax.set_xlim(-0.04, 1.04)
    ax.set_xlabel("agreement with the supervisor:\nfilled where it is right, open where wrong")
    _plain(ax, "x")


def _strip(
    ax: Axes, values: Sequence[float], y: float, i: int, middle: float, *, filled: bool = True
) -> None:
    """Draw the points of one method, spread a little, and a bar at their middle."""
    style = _style(i)
    spread = 0.17 if len(values) > 3 else 0.0
    places = y + np.random.default_rng(0).uniform(-spread, spread, len(values))
    face = style["color"] if filled else "white"
    ax.scatter(values, places, s=24, alpha=0.5, facecolor=face, edgecolor=style["color"], lw=1,
               marker=style["marker"], zorder=2)  # fmt: skip
    ax.plot([middle] * 2, [y - 0.27, y + 0.27], color=style["color"], lw=3.2, zorder=3,
            solid_capstyle="round")  # fmt: skip
    ax.annotate(f"{middle:.2f}", (middle, y + 0.3), ha="center", va="bottom", size=9,
                color=style["color"])  # fmt: skip


def _rows(ax: Axes, methods: Sequence[str]) -> None:
    """Name the rows, each in its colour, which is the legend of the whole."""
    ax.set_yticks(range(len(methods)), [_lines(m) for m in reversed(methods)])
    for i, label in enumerate(reversed(ax.get_yticklabels())):
        label.set(color=_style(i)["color"], weight="bold")
    air = max(0.0, _ROWS - len(methods)) / 2
    ax.set_ylim(-0.6 - air, len(methods) - 0.3 + air)


def _lines(name: str) -> str:
    """A long name in two lines, each cut where it is too long."""
    method, plus, loss = name.rpartition("+")
    parts = [method + plus, loss] if plus and len(name) > _WIDEST else [name]
    return "\n".join(p if len(p) <= _WIDEST else p[: _WIDEST - 1] + "…" for p in parts)


def _plain(ax: Axes, grid: Literal["x", "both"]) -> None:
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis=grid, color="#e6e9ee", lw=0.8)
    ax.set_axisbelow(True)
