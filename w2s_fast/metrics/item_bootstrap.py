"""Intervals of a single run: test items are resampled, and nothing else.

They say how the result depends on the test items, and nothing about other seeds or bases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from w2s_fast.metrics.estimates import LEVEL

N_BOOTSTRAP = 2000
_CHUNK_ITEMS = 4_000_000  # bootstrap weights in memory at a time: 32 MB


@dataclass(frozen=True)
class Outcomes:
    """Correctness per test item of the three models of one run.

    Attributes:
        weak, student, ceiling: (N,) bool, True where the prediction is right.
        groups: (N,) int64; items of one group are resampled together.
    """

    weak: np.ndarray
    student: np.ndarray
    ceiling: np.ndarray
    groups: np.ndarray


def paired_gap_se(outcomes: Outcomes) -> float:
    """Return the standard error of ceiling - floor on the same items, clustered by group."""
    diff = outcomes.ceiling.astype(float) - outcomes.weak.astype(float)
    names, index = np.unique(outcomes.groups, return_inverse=True)
    sums, n_groups = np.bincount(index, weights=diff - diff.mean()), len(names)
    if n_groups < 2:
        return math.inf
    return float(math.sqrt((sums**2).sum() * n_groups / (n_groups - 1)) / len(diff))


def pgr_item_interval(
    run: Outcomes, *, n_resamples: int = N_BOOTSTRAP, level: float = LEVEL, rng_seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the PGR of one run, over groups of test items.

    Args:
        run: Its outcomes; the three models are scored on the same resampled items.
        n_resamples: Bootstrap replicates.
        level: Coverage, e.g. 0.95.
        rng_seed: Seed of the resampling.
    """

    def ratios(right: np.ndarray) -> np.ndarray:
        weak, student, ceiling = right.T
        gap = ceiling - weak  # the number of items cancels
        return np.divide(student - weak, gap, out=np.full(len(gap), np.nan), where=gap > 0)

    models = np.stack([run.weak, run.student, run.ceiling])
    return _percentiles(models, run.groups, ratios, n_resamples, level, rng_seed)


def difference_item_interval(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    *,
    n_resamples: int = N_BOOTSTRAP,
    level: float = LEVEL,
    rng_seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of a difference of accuracy in one run.

    Args:
        first, second: (N,) bool, correctness of the two models on the same test items; or float,
            shares of right answers where a model gives several equally good ones.
        groups: (N,) int64, see ``Outcomes``.
        n_resamples, level, rng_seed: See ``pgr_item_interval``.
    """
    models = np.stack([first, second, np.ones_like(first)])

    def differences(right: np.ndarray) -> np.ndarray:
        return (right[:, 0] - right[:, 1]) / right[:, 2]  # groups differ in size

    return _percentiles(models, groups, differences, n_resamples, level, rng_seed)


def _percentiles(
    models: np.ndarray,
    groups: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    n_resamples: int,
    level: float,
    rng_seed: int,
) -> tuple[float, float]:
    """Return percentiles of a statistic of the resampled numbers of right items (R, K)."""
    rng = np.random.default_rng(rng_seed)
    index = np.unique(groups, return_inverse=True)[1]
    table = np.stack([np.bincount(index, weights=m.astype(float)) for m in models], 1)
    values = np.empty(n_resamples)
    step = max(1, _CHUNK_ITEMS // len(table))
    for lo in range(0, n_resamples, step):
        hi = min(lo + step, n_resamples)
        values[lo:hi] = statistic(_resample(rng, len(table), hi - lo) @ table)
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])  # a draw may have a gap of 0
    return float(low), float(high)


def _resample(rng: np.random.Generator, n: int, replicates: int) -> np.ndarray:
    """Return (replicates, n) float64: counts of n groups in n draws with replacement, per row."""
    drawn = rng.integers(n, size=(replicates, n)) + n * np.arange(replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * replicates).reshape(replicates, n).astype(float)
