"""The rules of 0.2.0 for comparison: bootstrap intervals, and the gap of one seed's items."""

from __future__ import annotations

import numpy as np

from w2s_fast.metrics import LEVEL, MIN_GAP_SE

_RESAMPLES = 200
_BITS = np.arange(8)


def _share(patterns: np.ndarray, bit: int) -> np.ndarray:
    return patterns[..., _BITS >> bit & 1 == 1].sum(-1) / patterns.sum(-1)


def bootstrap_contains(patterns: np.ndarray, truth: np.ndarray, seed: int) -> np.ndarray:
    """Return (R,) bool: whether the percentile interval of the mean PGR contains the truth (R,).

    Seeds and test items are both resampled; a draw with a gap of 0 or less is left out.

    Args:
        patterns: (R, S, 8), see ``Simulated``.
        truth: (R,) true PGR.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    n_seeds = patterns.shape[1]
    n = patterns.sum(-1)
    tail = (1 - LEVEL) / 2
    inside = np.empty(len(patterns), dtype=bool)
    for i, one in enumerate(patterns):
        drawn = rng.multinomial(n[i], one / n[i][:, None], size=(_RESAMPLES, n_seeds))
        gap = _share(drawn, 2) - _share(drawn, 0)
        gain = _share(drawn, 1) - _share(drawn, 0)
        ratios = np.divide(gain, gap, out=np.full(gap.shape, np.nan), where=gap > 0)
        chosen = np.take_along_axis(ratios, rng.integers(n_seeds, size=ratios.shape), axis=1)
        defined = np.isfinite(chosen)
        count = defined.sum(1)
        means = np.where(defined, chosen, 0.0).sum(1)[count > 0] / count[count > 0]
        low, high = np.quantile(means, [tail, 1 - tail]) if len(means) else (np.nan, np.nan)
        inside[i] = low <= truth[i] <= high
    return inside


def is_printed(patterns: np.ndarray) -> np.ndarray:
    """Return (R,) bool: whether a mean PGR was printed.

    It was if the gap of every seed, or else the mean gap, was at least two standard errors, which
    were those of one seed's items, however many seeds there were.
    """
    n = patterns.sum(-1)
    signed = (_BITS >> 2 & 1) - (_BITS & 1)  # ceiling - weak on one item
    gap = (patterns * signed).sum(-1) / n
    se = np.sqrt(((patterns * signed**2).sum(-1) / n - gap**2) / (n - 1))
    wide = gap >= MIN_GAP_SE * se
    pooled = gap.mean(1) >= MIN_GAP_SE * se.mean(1)
    return np.where(wide.any(1), wide.all(1) | pooled, False)
