"""The page's two charts as inline SVG, coloured by the page's style so they follow its theme."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable

from w2s_fast.report.rows import Row

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 860, 54, 190, 40, 14, 34  # pixels of the view box


def accuracy_chart(shown: list[Row]) -> str:
    """Return the chart of accuracies; the first row is the floor, the last the ceiling."""
    values = [a for row in shown for a in row.accuracies]
    x, ticks = _axis(min(values), max(values))
    floor, ceiling = x(shown[0].mean), x(shown[-1].mean)
    height = TOP + ROW * len(shown)
    left, size = min(floor, ceiling), f'width="{abs(ceiling - floor):.1f}" height="{height - TOP}"'
    parts = [
        *_grid(ticks, x, height),
        f'<rect class="band" x="{left:.1f}" y="{TOP}" {size}/>',
        *(_line("bound", v, TOP, v, height) for v in (floor, ceiling)),
    ]
    for i, row in enumerate(reversed(shown)):  # the ceiling belongs on top
        y = TOP + ROW * (i + 0.5)
        parts += [_name(row, y), *_dots(row.accuracies, row, x, y + 6)]
        parts.append(
            f'<rect class="c" style="--c:{row.color}" x="{x(row.mean) - 2:.1f}" y="{y - 7:.1f}" '
            'width="4" height="26" rx="2"/>'
        )
        parts.append(_value(f"{row.mean:.3f}", row, x(row.mean), y - 12))
    return _svg(parts, height, "Accuracy of every model by seed")


def pgr_chart(students: list[Row]) -> str:
    """Return the chart of recovered gaps with their intervals."""
    ends = [0.0, 1.0]
    for row in students:
        ends += [*row.pgrs, *(row.pgr[1:] if row.pgr else ())]
    x, ticks = _axis(min(ends), max(ends))
    height = TOP + ROW * len(students)
    parts = [*_grid(ticks, x, height), *(_line("bound", x(v), TOP, x(v), height) for v in (0, 1))]
    for i, row in enumerate(reversed(students)):
        y = TOP + ROW * (i + 0.5)
        parts.append(_name(row, y))
        if row.pgr is None:
            parts.append(f'<text class="muted" x="{x(0.5):.1f}" y="{y + 4:.1f}" '
                         'text-anchor="middle">refused: the gap is too small</text>')  # fmt: skip
            continue
        mean, low, high = row.pgr
        color = f'style="--c:{row.color}"'
        parts.append(f'<line class="s" {color} x1="{x(low):.1f}" x2="{x(high):.1f}" '
                     f'y1="{y + 6:.1f}" y2="{y + 6:.1f}"/>')  # fmt: skip
        parts += _dots(row.pgrs, row, x, y + 6)
        parts.append(f'<circle class="mean" {color} cx="{x(mean):.1f}" cy="{y + 6:.1f}" r="7"/>')
        parts.append(_value(f"{mean:.2f}  [{low:.2f}, {high:.2f}]", row, x(mean), y - 9))
    return _svg(parts, height, "Performance gap recovered, with intervals")


def _axis(low: float, high: float) -> tuple[Callable[[float], float], list[float]]:
    """Return the map from values to pixels, and round tick values inside the range."""
    air = 0.06 * max(high - low, 1e-3)
    low, high = low - air, high + air
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    return x, ticks


def _svg(parts: Iterable[str], height: float, label: str) -> str:
    box = f"0 0 {WIDTH} {height + BOTTOM:.0f}"
    body = "".join(parts)
    return f'<svg viewBox="{box}" role="img" aria-label="{html.escape(label)}">{body}</svg>'


def _grid(ticks: list[float], x: Callable[[float], float], height: float) -> Iterable[str]:
    for t in ticks:
        yield _line("grid", x(t), TOP, x(t), height)
        yield (
            f'<text class="muted" x="{x(t):.1f}" y="{height + 20:.1f}" '
            f'text-anchor="middle">{t:.3g}</text>'
        )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _name(row: Row, y: float) -> str:
    name = row.name if len(row.name) <= 26 else row.name[:25] + "…"
    return f'<text class="name" x="{LEFT - 18}" y="{y + 10:.1f}">{html.escape(name)}</text>'


def _value(text: str, row: Row, x: float, y: float) -> str:
    """Return a label above its mark, held inside the drawing."""
    half = 3.6 * len(text)
    x = min(max(x, LEFT + half), WIDTH - half)
    return f'<text class="value" style="--c:{row.color}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _dots(
    values: Iterable[float], row: Row, x: Callable[[float], float], y: float
) -> Iterable[str]:
    for v in values:
        yield f'<circle class="dot" style="--c:{row.color}" cx="{x(v):.1f}" cy="{y:.1f}" r="4.5"/>'
