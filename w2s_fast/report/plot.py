"""The plot: accuracies between floor and ceiling, and the gap recovered with its interval."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from w2s_fast.report.rows import DARK, GREY, Row, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = {
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#c8cdd5",
    "axes.labelcolor": "#3f4754",
    "xtick.color": "#5c6573",
    "ytick.color": "#2b303a",
    "svg.hashsalt": "w2s_fast",  # the same result gives the same file
    "svg.fonttype": "path",
}
DPI = 160


def render(results: Mapping[str, Any], kind: str) -> bytes:
    """Return the plot as "png" or "svg" bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = rows(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 1.75 + 0.5 * len(shown)), layout="constrained", dpi=DPI)
        left, right = figure.subplots(1, 2, width_ratios=(1.55, 1), sharey=True)
        _accuracies(left, shown)
        _recovered(right, shown)
        left.set_yticks(range(len(shown)), [r.name for r in shown])
        left.set_ylim(-0.6, len(shown) - 0.4)
        head = {"ha": "left", "weight": "bold", "size": 12.5, "color": "#1d2129"}
        figure.suptitle(_title(results), x=0.012, **head)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _title(results: Mapping[str, Any]) -> str:
    config = results["provenance"]["config"]
    seeds, n = len(config["seeds"]), results["runs"][0]["n_test"]
    plural = "s" if seeds > 1 else ""
    return f"{config['task']['name']}: weak to strong, {seeds} seed{plural}, {n} test items each"


def _accuracies(ax: Axes, shown: list[Row]) -> None:
    floor, ceiling = shown[0].mean, shown[-1].mean
    ax.axvspan(floor, ceiling, color="#eef2f8", zorder=0, lw=0)
    for value, color in ((floor, GREY), (ceiling, DARK)):
        ax.axvline(value, color=color, lw=1, ls=(0, (4, 3)), zorder=1)
    for y, row in enumerate(shown):
        _seeds(ax, row.accuracies, y, row.color)
        bar = [y - 0.24, y + 0.24]
        ax.plot([row.mean] * 2, bar, color=row.color, lw=3.2, solid_capstyle="round")
        _label(ax, f"{row.mean:.3f}", row.mean, y + 0.28, row.color)
    ax.set_xlabel("accuracy (points: seeds, bars: means)")
    ax.margins(x=0.08)
    _plain(ax)


def _recovered(ax: Axes, shown: list[Row]) -> None:
    ends = [0.0, 1.0]
    for value in ends:
        ax.axvline(value, color=(GREY, DARK)[int(value)], lw=1, ls=(0, (4, 3)), zorder=1)
    for y, row in enumerate(shown):
        if row.pgr is not None:
            mean, low, high = row.pgr
            ends += [low, high, *row.pgrs]
            ax.plot([low, high], [y, y], color=row.color, lw=2.4, solid_capstyle="round", zorder=2)
            _seeds(ax, row.pgrs, y, row.color)
            ax.scatter([mean], [y], s=72, color=row.color, edgecolor="white", lw=1.4, zorder=3)
            _label(ax, f"{mean:.2f}  [{low:.2f}, {high:.2f}]", mean, y + 0.2, row.color)
        elif row.student:
            ax.annotate("refused: gap too small", (0.5, y), ha="center", va="center", color=GREY)
    air = 0.08 * (max(ends) - min(ends))
    ax.set_xlim(min(ends) - air, max(ends) + air)
    ax.set_xlabel("PGR, 95 % interval")
    _plain(ax)


def _seeds(ax: Axes, values: Sequence[float], y: float, color: str) -> None:
    ax.scatter(values, [y] * len(values), s=26, color=color, alpha=0.45, lw=0)


def _label(ax: Axes, text: str, x: float, y: float, color: str) -> None:
    """Write above a mark, with a halo so that a line behind does not cut the digits."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white", alpha=0.85)]
    ax.annotate(
        text, (x, y), ha="center", va="bottom", size=9, color=color, path_effects=halo, zorder=4
    )


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#e6e9ee", lw=0.8)
    ax.set_axisbelow(True)
