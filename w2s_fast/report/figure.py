"""Draw figures: the style all of them share, and the two panels of a run's results."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from w2s_fast.report.model_rows import DARK, GREY, NOT_REPORTED, ModelRow, model_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
_STYLE = {
    "font.size": 10.5,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": "#c8cdd5",
    "axes.labelcolor": DARK,
    "xtick.color": "#5c6573",
    "ytick.color": "#2b303a",
    "svg.hashsalt": "w2s_fast",  # the same results give the same file
    "svg.fonttype": "none",  # text as text: a tenth of the size of glyph outlines
}


def render(paint: Callable[[Figure], None], size: tuple[float, float], kind: str) -> bytes:
    """Return a figure as "png" or "svg" bytes.

    Args:
        paint: Draws on the empty figure.
        size: Width and height in inches.
        kind: "png" or "svg".
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", dpi=DPI)
        paint(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    if kind != "svg":
        return buffer.getvalue()
    # matplotlib ends some lines with spaces, which checks of committed files reject
    return b"".join(line.rstrip() + b"\n" for line in buffer.getvalue().splitlines())


def set_title(figure: Figure, text: str) -> None:
    """Write the title of a whole figure at its upper left."""
    figure.suptitle(text, x=0.012, ha="left", weight="bold", size=12.5, color="#1d2129")


def style_axes(ax: Axes, grid: Literal["x", "both"] = "x") -> None:
    """Remove the frame and draw a light grid behind the data."""
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis=grid, color="#e6e9ee", lw=0.8)
    ax.set_axisbelow(True)


def draw_bounds(line: Callable[..., object], floor: float, ceiling: float) -> None:
    """Draw floor and ceiling as dashed lines with ``ax.axvline`` or ``ax.axhline``."""
    for value, color in ((floor, GREY), (ceiling, DARK)):
        line(value, color=color, lw=1, ls=(0, (4, 3)), zorder=1)


def results_figure(results: Mapping[str, Any], kind: str) -> bytes:
    """Return the two panels of a run, accuracy and PGR, as "png" or "svg" bytes."""
    rows = model_rows(results)

    def paint(figure: Figure) -> None:
        accuracy, pgr = figure.subplots(1, 2, width_ratios=(1.55, 1), sharey=True)
        _draw_accuracy(accuracy, rows)
        _draw_pgr(pgr, rows)
        accuracy.set_yticks(range(len(rows)), [row.name for row in rows])
        accuracy.set_ylim(-0.6, len(rows) - 0.4)
        set_title(figure, _title(results))

    return render(paint, (10.2, 1.75 + 0.5 * len(rows)), kind)


def _title(results: Mapping[str, Any]) -> str:
    config = results["provenance"]["config"]
    seeds, n = len(config["seeds"]), results["runs"][0]["n_test"]
    plural = "s" if seeds > 1 else ""
    return f"{config['task']['name']}: weak to strong, {seeds} seed{plural}, {n} test items each"


def _draw_accuracy(ax: Axes, rows: Sequence[ModelRow]) -> None:
    floor, ceiling = rows[0].mean, rows[-1].mean
    ax.axvspan(floor, ceiling, color="#eef2f8", zorder=0, lw=0)
    draw_bounds(ax.axvline, floor, ceiling)
    for y, row in enumerate(rows):
        _draw_seeds(ax, row.accuracies, y, row.color)
        bar = [y - 0.24, y + 0.24]
        ax.plot([row.mean] * 2, bar, color=row.color, lw=3.2, solid_capstyle="round")
        _label(ax, f"{row.mean:.3f}", row.mean, y + 0.28, row.color)
    ax.set_xlabel("accuracy (points: seeds, bars: means)")
    ax.margins(x=0.08)
    style_axes(ax)


def _draw_pgr(ax: Axes, rows: Sequence[ModelRow]) -> None:
    ends = [0.0, 1.0]
    draw_bounds(ax.axvline, *ends)
    for y, row in enumerate(rows):
        if row.pgr is not None:
            mean, low, high = row.pgr
            ends += [low, high, *row.pgrs]
            ax.plot([low, high], [y, y], color=row.color, lw=2.4, solid_capstyle="round", zorder=2)
            _draw_seeds(ax, row.pgrs, y, row.color)
            ax.scatter([mean], [y], s=72, color=row.color, edgecolor="white", lw=1.4, zorder=3)
            _label(ax, f"{mean:.2f}  [{low:.2f}, {high:.2f}]", mean, y + 0.2, row.color)
        elif row.student:
            ax.annotate(
                f"{NOT_REPORTED}: gap too small", (0.5, y), ha="center", va="center", color=GREY
            )
    margin = 0.08 * (max(ends) - min(ends))
    ax.set_xlim(min(ends) - margin, max(ends) + margin)
    ax.set_xlabel("PGR, 95 % interval")
    style_axes(ax)


def _draw_seeds(ax: Axes, values: Sequence[float], y: float, color: str) -> None:
    ax.scatter(values, [y] * len(values), s=26, color=color, alpha=0.45, lw=0)


def _label(ax: Axes, text: str, x: float, y: float, color: str) -> None:
    """Write above a mark, on a white ground so that a line behind does not cut the digits."""
    ground = {"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.6}
    ax.annotate(text, (x, y), ha="center", va="bottom", size=9, color=color, bbox=ground, zorder=4)
