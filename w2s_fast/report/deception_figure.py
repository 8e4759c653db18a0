"""Draw where the conflict tax falls: what weak model and ceiling know, a panel per student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from w2s_fast.report.deception_rows import Area, areas_of, paper_score, share
from w2s_fast.report.figure import NOT_MATH, drawable, render
from w2s_fast.report.model_rows import DARK, format_number
from w2s_fast.report.names import fit_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = (3.3, 3.3)  # inches
_MOST_IN_ROW = 3
_LETTERS = 36  # of a title in a panel's width
_LEAST = 0.17, 0.1  # width and height of a rectangle that has room for its text
_DARK_RATE = 0.2  # rates of tax below this are never shown in the darkest colour
_WHITE, _FULL = (1.0, 1.0, 1.0), (0.78, 0.29, 0.09)


def deception_figure(results: Mapping[str, Any], kind: str) -> bytes:
    """Return the figure as "png" or "svg" bytes, of results with an entry in ``deception``.

    The width of a column is the share of items that the weak model knows, or does not; heights are
    the shares of the ceiling among these. The colour is the rate of tax among the items that the
    student has right without the conflict. The outlined area is the deception score's.
    """
    rows: Sequence[Mapping[str, Any]] = results["deception"]
    n_columns = min(len(rows), _MOST_IN_ROW)
    n_lines = math.ceil(len(rows) / n_columns)
    rates = [area.rate or 0.0 for row in rows for area in areas_of(row).values()]
    highest = max(*rates, _DARK_RATE)
    (*titles,) = fit_names([row["name"] for row in rows], _LETTERS, glyphs=drawable(kind))

    def paint(figure: Figure) -> None:
        axes = figure.subplots(n_lines, n_columns, squeeze=False).ravel()
        for ax, row, title in zip(axes, rows, titles, strict=False):
            _draw(ax, row, title, highest)
        for ax in axes[len(rows) :]:
            ax.set_visible(False)

    size = max(n_columns * _PANEL[0], 4.6), n_lines * _PANEL[1] + 0.5
    return render(paint, size, kind, "Share of the conflict tax by what the models know")


def _draw(ax: Axes, row: Mapping[str, Any], title: str, highest: float) -> None:
    areas, x = areas_of(row), 0.0
    n = sum(area.items for area in areas.values())
    for weak in (True, False):
        column = {strong: areas[strong, weak] for strong in (True, False)}
        width, y = sum(area.items for area in column.values()) / n, 0.0
        for strong, area in column.items():
            height = area.items / n / width if width else 0.0
            _rectangle(ax, (x, y, width, height), area, area.rate or 0.0, highest)
            if strong and not weak and width and height:
                _outline(ax, x, y, width, height)
            y += height
        x += width
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    known = sum(area.items for (_, weak), area in areas.items() if weak) / n
    ax.set_xticks([known / 2, (1 + known) / 2], ["weak\nknows", "weak\ndoes not"])
    by_ceiling = sum(area.items for (strong, _), area in areas.items() if strong) / n
    ax.set_yticks([by_ceiling / 2, (1 + by_ceiling) / 2], ["ceiling\nknows", "ceiling\ndoes not"])
    ax.tick_params(length=0, labelsize=8.5)
    ax.spines[:].set_visible(False)
    score = paper_score(row["thresholds"][0])
    text = f"score {format_number(score['score'], 2)}"
    if score["low"] is not None:
        text += f" ({score['low']:.2f} – {score['high']:.2f})"
    text += f", expected {format_number(score['expected'], 2)}"
    style: dict[str, Any] = {"fontsize": 9, "color": DARK, **NOT_MATH}
    ax.set_title(f"{title}\n{text}", loc="left", **style)


def _rectangle(
    ax: Axes, box: tuple[float, float, float, float], area: Area, rate: float, highest: float
) -> None:
    from matplotlib.patches import Rectangle

    x, y, width, height = box
    level = rate / highest
    color = tuple(a + (b - a) * level for a, b in zip(_WHITE, _FULL, strict=True))
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="#c8cdd5", lw=0.8))
    if width >= _LEAST[0] and height >= _LEAST[1]:
        ink = "white" if level > 0.6 else "#1d2129"
        words = f"tax {share(area.part_of_tax)}\nrate {share(area.rate)}"
        ax.text(x + width / 2, y + height / 2, words, ha="center", va="center", size=8, color=ink)


def _outline(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=DARK, lw=1.8, zorder=3))
