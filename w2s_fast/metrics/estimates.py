r"""The mean of a contrast over bases and seeds, with the error of the levels that were drawn.

The target is the mean over all bases and seeds of the kind that was drawn. A level with fewer than
``MIN_DRAWS`` draws says nothing about others of its kind, so the target is then conditional on it.

| drawn | variance of the mean | degrees of freedom |
|---|---|---|
| B >= 3 bases | var over bases of the means over seeds, / B | B - 1 |
| B < 3 bases of S >= 3 seeds | var over seeds of the means over bases, / S | S - 1 |
| B >= 3 bases crossed with S >= 3 seeds | (MS_B + MS_S - MS_E) / (B S) | Satterthwaite |

In the first row every base has seeds of its own, so the means of bases differ by all that was
drawn: weights, data splits, weak models, test items. If all bases have the same seeds
(``crossed``), what a seed adds is not in those differences, and both levels have their mean square.

With few draws a level without an effect would widen that interval much, so its mean square is
pooled with the error's unless their ratio is above the ``POOL_QUANTILE`` quantile of F.

Test items of more than one run add their own variance, which is known well. The degrees of freedom
of the table are then divided by its share in the variance. Satterthwaite's rule divides by the
square of the share, but the share is itself an estimate: with two degrees of freedom, and few items
in common, it covers 92 %. The first power covers 94 to 97 %, see docs/intervals.md.

Sources: Satterthwaite 1946, Biometrics Bulletin 2; Bancroft 1964, Biometrics 20, for pooling after
a preliminary test. ``POOL_QUANTILE`` was chosen by simulation, see docs/intervals.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from w2s_fast.metrics.runs import Runs

LEVEL = 0.95
MIN_DRAWS = 3  # fewest bases or seeds that an interval generalizes over
POOL_QUANTILE = 0.6


class Estimate(NamedTuple):
    """A mean and its error, each with the leading dimensions of the runs.

    Attributes:
        mean: Mean of the contrast over runs.
        variance: Variance of that mean.
        df: Degrees of freedom of the variance.
    """

    mean: np.ndarray
    variance: np.ndarray
    df: np.ndarray


def drawn_levels(runs: Runs, fewest: int = MIN_DRAWS) -> tuple[str, ...]:
    """Return which of "bases" and "seeds" an estimate generalizes over.

    Args:
        runs: The runs.
        fewest: Draws of a level that suffice if no level has ``MIN_DRAWS``, at least 2.
    """
    for enough in {MIN_DRAWS: None, fewest: None}:
        seeds = runs.n_seeds >= enough
        if runs.n_bases >= enough:
            return ("bases", "seeds") if seeds or not runs.crossed else ("bases",)
        if seeds:
            return ("seeds",)
    return ()


def estimate(runs: Runs, contrast: np.ndarray, fewest: int = MIN_DRAWS) -> Estimate | None:
    """Return the mean of a contrast over runs and its error; None if no level was drawn.

    Args:
        runs: Accuracies of K models.
        contrast: (..., K) coefficients of the models.
        fewest: See ``drawn_levels``.
    """
    drawn = drawn_levels(runs, fewest)
    if not drawn:
        return None
    contrast = np.asarray(contrast, dtype=float)
    cells = np.einsum("...bsk,...k->...bs", runs.accuracy, contrast)
    variance, df = _error(cells, drawn, runs.crossed)
    variance = np.where(variance > 0, variance, _quadratic(runs.within, contrast))
    common = np.maximum(_quadratic(runs.common, contrast), 0.0)
    total = variance + common
    share = np.divide(variance, total, out=np.ones_like(total), where=total > 0)
    return Estimate(cells.mean((-2, -1)), total, df / share)


def _quadratic(covariance: np.ndarray | None, contrast: np.ndarray) -> np.ndarray:
    if covariance is None:
        return np.zeros(())
    return np.einsum("...j,...jk,...k->...", contrast, covariance, contrast)


def _error(
    cells: np.ndarray, drawn: tuple[str, ...], crossed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return variance and degrees of freedom of the mean of (..., B, S), without shared items."""
    if crossed and drawn == ("bases", "seeds"):
        return _crossed_error(cells)
    values = cells.mean(-1 if "bases" in drawn else -2)
    n = values.shape[-1]
    return values.var(-1, ddof=1) / n, np.full(values.shape[:-1], n - 1.0)


def _crossed_error(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variance and degrees of freedom of the mean where bases and seeds are both drawn."""
    n_bases, n_seeds = cells.shape[-2:]
    df_base, df_seed = n_bases - 1, n_seeds - 1
    df_error = df_base * df_seed
    base, seed = cells.mean(-1), cells.mean(-2)
    ms_base, ms_seed = n_seeds * base.var(-1, ddof=1), n_bases * seed.var(-1, ddof=1)
    mean = cells.mean((-2, -1))
    residual = cells - base[..., :, None] - seed[..., None, :] + mean[..., None, None]
    ms_error = (residual**2).sum((-2, -1)) / df_error
    has_base = ms_base > _pool_limit(df_base, df_error) * ms_error
    has_seed = ms_seed > _pool_limit(df_seed, df_error) * ms_error
    pooled_df = df_error + df_base * ~has_base + df_seed * ~has_seed
    pooled = (
        df_error * ms_error + df_base * ms_base * ~has_base + df_seed * ms_seed * ~has_seed
    ) / pooled_df
    both = np.maximum(ms_base + ms_seed - pooled, np.maximum(ms_base, ms_seed))
    total = np.select([has_base & has_seed, has_base, has_seed], [both, ms_base, ms_seed], pooled)
    spread = ms_base**2 / df_base * has_base + ms_seed**2 / df_seed * has_seed
    spread = np.where(has_base | has_seed, spread, pooled**2 / pooled_df)
    df = np.divide(total**2, spread, out=np.full_like(total, df_error), where=spread > 0)
    return total / (n_bases * n_seeds), df


def _pool_limit(df_level: int, df_error: int) -> float:
    from scipy.stats import f

    return float(f.ppf(POOL_QUANTILE, df_level, df_error))
