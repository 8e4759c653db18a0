"""The figure of docs/evidence.md: differences to plain cross-entropy by method and set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.evidence.comparisons import Group, groups
from bench.evidence.design import PROTOCOLS, SUPERVISORS, report_name
from bench.evidence.table import committed, set_title, supervisor_title
from w2s_fast.report.figure import NOT_MATH, render, style_axes
from w2s_fast.report.model_rows import PALETTE, level_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_INCHES = 0.24
_SPREAD = 0.22  # rows between the points of two supervisors


def evidence_figure(rows: Sequence[dict[str, Any]] | None = None, kind: str = "svg") -> bytes:
    """Return a panel for each set with probes, as "svg" or "png" bytes.

    A point is the mean difference of accuracy to plain cross-entropy, a line its interval.

    Args:
        rows: Rows of the experiments; None: the committed ones.
        kind: "svg" or "png".
    """
    found = [g for g in (committed() if rows is None else groups(rows)) if g.protocol == "probe"]
    names = [report_name(spec) for spec in PROTOCOLS["probe"].methods[1:]]
    sets = list(dict.fromkeys(group.data for group in found)) or ["sst2"]

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
        for ax, data in zip(axes, sets, strict=True):
            _draw(ax, [g for g in found if g.data == data], names)
            ax.set_title(set_title(data), loc="left", size=10.5)
        axes[0].set_yticks(range(len(names)), names, **NOT_MATH)
        axes[0].invert_yaxis()
        if found:
            # Of the figure: a legend of the first panel would push the second one away.
            figure.legend(*_entries(axes), loc="outside lower center", frameon=False, ncols=3)

    size = (4.2 + 2.4 * len(sets), 1.6 + _ROW_INCHES * len(names))
    title = f"Accuracy minus that of probe+xent, with {level_text()} intervals over seeds"
    return render(paint, size, kind, title)


def _entries(axes: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """Return handles and labels of the legend, each supervisor once."""
    found: dict[str, Artist] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)


def _draw(ax: Axes, found: Sequence[Group], names: Sequence[str]) -> None:
    for group in found:
        at = SUPERVISORS.index(group.supervisor)
        color, shift = PALETTE[at], _SPREAD * (at - (len(SUPERVISORS) - 1) / 2)
        points = {s.name: s.difference for s in group.students if s.difference is not None}
        rows = [i for i, name in enumerate(names) if name in points]
        values = [points[names[i]]["difference"] for i in rows]
        places = [i + shift for i in rows]
        ax.plot(values, places, "o", ms=3, color=color, label=supervisor_title(group.supervisor))
        for i, place in zip(rows, places, strict=True):
            d = points[names[i]]
            if d["low"] is not None:
                ax.plot([d["low"], d["high"]], [place, place], color=color, lw=1)
    ax.axvline(0.0, color="#3f4754", lw=1, zorder=1)
    ax.margins(y=0.01)
    style_axes(ax)
