"""Axes of the page's charts: values as percentages of a width, with round tick values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low, high: Values at 0 % and 100 %.
        ticks: Values with a label, inside.
        digits: Decimals of the labels.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int

    def __call__(self, value: float) -> float:
        """Return the position of a value in percent, at the nearer end if it is outside."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    def beyond(self, value: float) -> bool:
        """Return whether a value is outside."""
        return not self.low <= value <= self.high

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Position and label of each tick."""
        rounded = (round(t, self.digits) + 0.0 for t in self.ticks)  # no -0.0
        return [(self(t), f"{t:.{self.digits}f}") for t in rounded]

    @property
    def ends(self) -> tuple[str, str]:
        """Labels of both ends."""
        return f"{self.low:.3g}", f"{self.high:.3g}"


def make_axis(values: Iterable[float], intervals: Iterable[float] = ()) -> Axis:
    """Return an axis that holds all values, and intervals unless they would hide the values.

    Args:
        values: Finite values.
        intervals: Ends of intervals; the axis grows by at most half its length for them.
    """
    from w2s_fast.report.figure import limits

    finite = [v for v in intervals if math.isfinite(v)]
    low, high = limits(list(values), finite)
    return _with_ticks(low, high)


def unit_axis(*, small: bool = False) -> Axis:
    """Return the axis of shares, 0 to 1; with three ticks for a small chart."""
    if small:
        return Axis(0.0, 1.0, (0.0, 0.5, 1.0), 1)
    return Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), 2)


def _with_ticks(low: float, high: float) -> Axis:
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(_TICKS, steps=[1, 2, 5, 10])  # labels then need one digit for the step
    ticks = [float(t) for t in locator.tick_values(low, high) if low <= t <= high]
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=1.0)
    return Axis(low, high, tuple(ticks), max(0, -math.floor(math.log10(step) + 1e-9)))


def polyline(x: Sequence[float], y: Sequence[float | None], across: Axis, up: Axis) -> list[str]:
    """Return the points of a line in a box of 100 x 100 units, in parts where a value is missing.

    Args:
        x, y: Values; None breaks the line.
        across, up: Axes; ``up`` points upwards.
    """
    parts: list[list[str]] = [[]]
    for a, b in zip(x, y, strict=True):
        if b is None:
            parts.append([])
        else:
            parts[-1].append(f"{across(a):g},{100 - up(b):g}")
    return [" ".join(part) for part in parts if part]
