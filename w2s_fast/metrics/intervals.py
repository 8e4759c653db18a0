r"""Intervals of a mean (Student's t) and of a ratio of means (Fieller).

PGR over runs is the ratio of the mean gains, R = E(student - weak) / E(ceiling - weak). A value r
is in its interval if the contrast student - weak - r (ceiling - weak), whose mean is 0 at r = R,
does not differ from 0 at that level. So the ratio is covered as often as differences of accuracy
are, however small the gap is. If the gap itself does not differ from 0 at that level (two-sided),
the interval has no end.

Source: Fieller 1954, J. R. Stat. Soc. B 16, "Some problems in interval estimation".
"""

from __future__ import annotations

import math

import numpy as np

from w2s_fast.metrics.estimates import LEVEL, MIN_DRAWS, Estimate, estimate
from w2s_fast.metrics.runs import Runs

_DOUBLINGS = 60
_BISECTIONS = 60


def half_width(error: Estimate, level: float = LEVEL) -> np.ndarray:
    """Return half the length of the t interval of a mean, with the error's leading dimensions."""
    from scipy.stats import t

    return t.ppf((1 + level) / 2, error.df) * np.sqrt(error.variance)


def mean_interval(
    runs: Runs, contrast: np.ndarray, level: float = LEVEL
) -> tuple[float, float] | None:
    """Return the t interval of a contrast; None below three draws or if nothing varies at all."""
    error = estimate(runs, contrast)
    if error is None or not error.variance > 0:
        return None
    width = float(half_width(error, level))
    return float(error.mean) - width, float(error.mean) + width


def p_value(error: Estimate) -> np.ndarray:
    """Return the two-sided p of a mean of 0; 1 where the mean is 0 without any variance."""
    from scipy.stats import t

    scale = np.sqrt(error.variance)
    ratio = np.divide(
        error.mean, scale, out=np.where(error.mean == 0, 0.0, np.inf), where=scale > 0
    )
    return 2 * t.sf(np.abs(ratio), error.df)


def pgr_contrast(ratio: np.ndarray | float) -> np.ndarray:
    """Return coefficients (..., 3) of (weak, student, ceiling) with mean 0 at this true PGR."""
    ratio = np.asarray(ratio, dtype=float)
    return np.stack([ratio - 1, np.ones_like(ratio), -ratio], -1)


def pgr_is_in_interval(runs: Runs, ratio: np.ndarray | float, level: float = LEVEL) -> np.ndarray:
    """Return whether Fieller's set contains a PGR; models are (weak, student, ceiling).

    Raises:
        ValueError: There are fewer than three bases and seeds.
    """
    error = estimate(runs, pgr_contrast(ratio))
    if error is None:
        raise ValueError(f"fewer than {MIN_DRAWS} bases or seeds have no interval")
    return np.abs(error.mean) <= half_width(error, level)


def pgr_interval(runs: Runs, level: float = LEVEL) -> tuple[float, float] | None:
    """Return Fieller's interval of the PGR of mean accuracies.

    Args:
        runs: Accuracies of (weak, student, ceiling), without leading dimensions.
        level: Coverage, e.g. 0.95.

    Returns:
        Its ends, (-inf, inf) if it is unbounded, or None below three draws, if the mean gap is 0,
        or if nothing varies at all.
    """
    weak, student, ceiling = (float(a) for a in runs.accuracy.mean((0, 1)))
    gap = estimate(runs, np.array([-1.0, 0.0, 1.0]))
    if gap is None or ceiling == weak:
        return None
    ratio = (student - weak) / (ceiling - weak)
    width = mean_interval(runs, pgr_contrast(ratio), level)
    if width is None:
        return None
    if abs(gap.mean) <= half_width(gap, level):
        return -math.inf, math.inf
    step = max((width[1] - width[0]) / 2 / abs(ceiling - weak), 1e-9)
    return _end(runs, ratio, -step, level), _end(runs, ratio, step, level)


def _end(runs: Runs, ratio: float, step: float, level: float) -> float:
    """Return the end of the interval on one side of the ratio, infinite if there is none."""
    inside, outside = ratio, ratio + step
    for _ in range(_DOUBLINGS):
        if not pgr_is_in_interval(runs, outside, level):
            break
        inside, step = outside, 2 * step
        outside += step
    else:
        return math.copysign(math.inf, step)
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if pgr_is_in_interval(runs, middle, level):
            inside = middle
        else:
            outside = middle
    return float(inside + outside) / 2
