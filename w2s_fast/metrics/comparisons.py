r"""Compare methods: paired differences over the same runs, and Holm's correction.

Students of one run share weak labels, test items and initial weights, so their difference varies
much less than either accuracy. Bases and seeds are random effects, see ``estimates``.

Source: Holm 1979, Scand. J. Stat. 6, "A simple sequentially rejective multiple test procedure".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2s_fast.metrics.estimates import LEVEL, estimate
from w2s_fast.metrics.intervals import mean_interval, p_value
from w2s_fast.metrics.runs import Runs

DIFFERENCE = np.array([1.0, -1.0])  # coefficients of (method, baseline)


@dataclass(frozen=True)
class Difference:
    """Mean difference of accuracy between two students of the same runs.

    Attributes:
        mean: Method - baseline.
        low, high: Ends of the t interval; None below three draws or if nothing varies.
        p: Two-sided p of no difference; None below three draws.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None


def paired_difference(runs: Runs, level: float = LEVEL) -> Difference:
    """Return the difference of (method, baseline) over their runs.

    Args:
        runs: Accuracies of the two students, without leading dimensions.
        level: Coverage of the interval.
    """
    error = estimate(runs, DIFFERENCE)
    mean = float((runs.accuracy @ DIFFERENCE).mean())
    low, high = mean_interval(runs, DIFFERENCE, level) or (None, None)
    return Difference(mean, low, high, None if error is None else float(p_value(error)))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p values that are corrected for their number; None stays and does not count."""
    order = sorted((v, i) for i, v in enumerate(p) if v is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = -math.inf
    for rank, (value, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        corrected[i] = largest
    return corrected
