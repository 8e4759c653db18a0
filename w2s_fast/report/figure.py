"""Draw figures: the style all of them share, and the two panels of a run's results."""

from __future__ import annotations

import functools
import io
import itertools
import re
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from w2s_fast.report.model_rows import (
    DARK,
    GREY,
    NOT_REPORTED,
    ModelRow,
    count,
    level_text,
    model_rows,
)
from w2s_fast.report.names import fit_names, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
NOT_MATH = {"parse_math": False}  # of texts with names, which may have dollar signs
_FONT = "DejaVu Sans"
_GROUND = {"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.6}  # lines do not cut digits
_PITCH = 0.5  # inches from row to row
_LINE_POINTS = 13  # from line to line of a label
_TITLE_CELLS = 8  # letters of the title in an inch
_TAG, _DIGITS = re.compile(rb"<[^>]+>"), re.compile(rb"(\d+\.\d\d)\d+")  # of an SVG
_NO_TURN = re.compile(rb' transform="rotate\(-?0(\.0)? [^)]*\)"')
_STYLE = {
    "font.size": 10.5,
    "font.sans-serif": [_FONT],
    "axes.edgecolor": "#c8cdd5",
    "axes.labelcolor": DARK,
    "xtick.color": "#5c6573",
    "ytick.color": "#2b303a",
    "svg.hashsalt": "w2s_fast",  # the same results give the same file
    "svg.fonttype": "none",  # text as text: a tenth of the size of glyph outlines
}


def render(
    paint: Callable[[Figure], None], size: tuple[float, float], kind: str, title: str = ""
) -> bytes:
    """Return a figure as "png" or "svg" bytes.

    Args:
        paint: Draws on the empty figure.
        size: Width and height in inches.
        kind: "png" or "svg".
        title: Title of the figure, also in the file's metadata.
    """
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # a user's matplotlibrc must not change the file
    with matplotlib.style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # viewers of an SVG have other fonts
        # a viewer's font may be wider than the one that the layout was made with
        layout = ConstrainedLayoutEngine(w_pad=0.12)
        figure = Figure(figsize=size, layout=layout, dpi=DPI)
        paint(figure)
        if title:
            _set_title(figure, title, size[0], kind)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=_metadata(title, kind))
    if kind != "svg":
        return buffer.getvalue()
    # Coordinates to a hundredth of a point: further digits are a tenth of the file, rotations by
    # nothing and the indentation are another.
    short = _TAG.sub(lambda tag: _DIGITS.sub(rb"\1", _NO_TURN.sub(b"", tag[0])), buffer.getvalue())
    return b"".join(line.strip() + b"\n" for line in short.splitlines())


def _metadata(title: str, kind: str) -> dict[str, str | None]:
    named: dict[str, str | None] = {"Title": printable(title)} if title else {}
    return named | ({"Date": None} if kind == "svg" else {})


def _set_title(figure: Figure, text: str, width: float, kind: str) -> None:
    """Write the title at the upper left, in as many lines as a figure of ``width`` inches needs."""
    (wrapped,) = fit_names([text], int(width * _TITLE_CELLS), glyphs=drawable(kind))
    style: dict[str, Any] = {"weight": "bold", "size": 12.5, "color": "#1d2129"}
    figure.suptitle(wrapped, x=0.1 / width, ha="left", **NOT_MATH, **style)


def drawable(kind: str) -> Container[int] | None:
    """Return the code points of the figures' font; None for SVG, whose viewers have more fonts."""
    return None if kind == "svg" else _font_glyphs()


@functools.cache
def _font_glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    path = font_manager.findfont(_FONT)  # a part of matplotlib
    return frozenset(font_manager.get_font(path).get_charmap())


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


def stack_rows(labels: Sequence[str], pitch: float) -> tuple[list[float], float]:
    """Return the centre of each row, upwards from 0, and the height of all rows.

    Args:
        labels: The label of each row, with line breaks.
        pitch: Inches between two rows whose labels are short; the unit of the results.
    """
    lines = [1 + label.count("\n") for label in labels]
    heights = [max(1.0, (_LINE_POINTS * n / 72 + 0.14) / pitch) for n in lines]
    ends = list(itertools.accumulate(heights))
    return [end - height / 2 for end, height in zip(ends, heights, strict=True)], ends[-1]


def label_rows(
    ax: Axes, centres: Sequence[float], labels: Sequence[str], colors: Sequence[str] = ()
) -> None:
    """Write the labels of rows left of the axes, bold if they have colours.

    Each line is a text of its own: an SVG then stays aligned with the axes in any font.
    """
    for i, (y, label) in enumerate(zip(centres, labels, strict=True)):
        style: dict[str, Any] = {**NOT_MATH, "ha": "right", "va": "center", "color": "#2b303a"}
        if colors:
            style |= {"color": colors[i], "weight": "bold"}
        lines = label.split("\n")
        for k, line in enumerate(lines):
            shift = (-6, _LINE_POINTS * ((len(lines) - 1) / 2 - k))
            ax.annotate(line, (0, y), shift, ("axes fraction", "data"), "offset points",
                        annotation_clip=False, **style)  # fmt: skip


def limits(values: Sequence[float], intervals: Sequence[float] = ()) -> tuple[float, float]:
    """Return the ends of an axis: all values, and intervals unless they would hide the values.

    Args:
        values: Values that are always inside.
        intervals: Ends of intervals; the axis grows by at most half its length for them.
    """
    low, high = min(values), max(values)
    room = max(high - low, 0.02) / 2
    low = max(low - room, min([low, *intervals]))
    high = min(high + room, max([high, *intervals]))
    margin = max(0.08 * (high - low), 0.01)
    return low - margin, high + margin


def results_figure(results: Mapping[str, Any], kind: str) -> bytes:
    """Return the two panels of a run, accuracy and PGR, as "png" or "svg" bytes.

    Args:
        results: The contents of results.json.
        kind: "png" or "svg".
    """
    rows = model_rows(results)
    wrapped = fit_names([row.name for row in rows], 34, 4, drawable(kind))
    panel = _Panel(rows, [text.replace(" \n", "\n") for text in wrapped])  # right-aligned

    def paint(figure: Figure) -> None:
        accuracy, pgr = figure.subplots(1, 2, width_ratios=(1.55, 1))
        panel.place_rows(accuracy)
        panel.place_rows(pgr)
        label_rows(accuracy, panel.centres, panel.labels)
        _draw_accuracy(accuracy, panel)
        _draw_pgr(pgr, panel)

    return render(paint, (10.2, 1.35 + _PITCH * panel.height), kind, _title(results))


@dataclass(frozen=True)
class _Panel:
    """Rows of a panel, upwards, and their labels."""

    rows: Sequence[ModelRow]
    labels: Sequence[str]

    @property
    def centres(self) -> list[float]:
        """Vertical positions of the rows."""
        return stack_rows(self.labels, _PITCH)[0]

    @property
    def height(self) -> float:
        """Height of all rows, in rows."""
        return stack_rows(self.labels, _PITCH)[1]

    def place_rows(self, ax: Axes) -> None:
        """Set the vertical axis."""
        ax.set_yticks([])
        ax.set_ylim(0, self.height + 0.1)


def _title(results: Mapping[str, Any]) -> str:
    config = results.get("provenance", {}).get("config", {})
    seeds = len({run["seed"] for run in results["runs"]})
    task = config.get("task", {}).get("name", "")
    return (
        f"{f'{task}: ' if task else ''}weak to strong, {count(seeds, 'seed')}, "
        f"{results['runs'][0]['n_test']} test items each"
    )


def _draw_accuracy(ax: Axes, panel: _Panel) -> None:
    floor, ceiling = panel.rows[0].mean, panel.rows[-1].mean
    ax.set_xlim(limits([a for row in panel.rows for a in row.accuracies]))
    if ceiling > floor:  # else there is no gap to recover
        ax.axvspan(floor, ceiling, color="#eef2f8", zorder=0, lw=0)
    draw_bounds(ax.axvline, floor, ceiling)
    for y, row in zip(panel.centres, panel.rows, strict=True):
        _draw_seeds(ax, row.accuracies, y, row.color)
        bar = [y - 0.24, y + 0.24]
        ax.plot([row.mean] * 2, bar, color=row.color, lw=3.2, solid_capstyle="round")
        _label(ax, f"{row.mean:.3f}", row.mean, y + 0.28, row.color)
    ax.set_xlabel("accuracy (points: seeds, bars: means)")
    style_axes(ax)


def _draw_pgr(ax: Axes, panel: _Panel) -> None:
    means = [row.pgr[0] for row in panel.rows if row.pgr is not None]
    ends = [end for row in panel.rows if row.pgr is not None for end in row.pgr[1:]]
    low, high = limits([0.0, 1.0, *means, *(p for row in panel.rows for p in row.pgrs)], ends)
    ax.set_xlim(low, high)
    draw_bounds(ax.axvline, 0.0, 1.0)
    for y, row in zip(panel.centres, panel.rows, strict=True):
        if row.pgr is None:
            if not row.student:
                continue
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": GREY, "bbox": _GROUND}
            ax.annotate(NOT_REPORTED, ((low + high) / 2, y), **style)
            continue
        mean, *interval = row.pgr
        _draw_interval(ax, interval, y, row.color)
        _draw_seeds(ax, row.pgrs, y, row.color)
        ax.scatter([mean], [y], s=72, color=row.color, edgecolor="white", lw=1.4, zorder=3)
        _label(ax, f"{mean:.2f}  {row.interval}".rstrip(), mean, y + 0.2, row.color)
    ax.set_xlabel(f"PGR, {level_text()} interval")
    style_axes(ax)


def _draw_interval(ax: Axes, ends: Sequence[float], y: float, color: str) -> None:
    """Draw a horizontal interval; an arrow head marks an end beyond the axis."""
    low, high = ax.get_xlim()
    drawn = [max(ends[0], 2 * low - high), min(ends[1], 2 * high - low)]  # infinite ends too
    ax.plot(drawn, [y, y], color=color, lw=2.4, solid_capstyle="round", zorder=2)
    for beyond, edge, marker in ((ends[0] < low, low, "<"), (ends[1] > high, high, ">")):
        if beyond:
            ax.plot([edge], [y], marker=marker, ms=7, color=color, clip_on=False, zorder=2)


def _draw_seeds(ax: Axes, values: Sequence[float], y: float, color: str) -> None:
    ax.scatter(values, [y] * len(values), s=26, color=color, alpha=0.45, lw=0)


def _label(ax: Axes, text: str, x: float, y: float, color: str) -> None:
    """Write above a mark."""
    ax.annotate(text, (x, y), ha="center", va="bottom", size=9, color=color, bbox=_GROUND, zorder=4)
