"""Errors of means over bases and seeds, t intervals and Fieller's interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from w2s_fast import metrics
from w2s_fast.errors import W2SError
from w2s_fast.metrics.estimates import POOL_QUANTILE

ONE = np.array([1.0])


def _runs(cells: np.ndarray, **options: bool) -> metrics.Runs:
    """Return runs (B, S) of one model."""
    return metrics.Runs(np.asarray(cells, dtype=float)[..., None], **options)


def _estimate(runs: metrics.Runs) -> metrics.Estimate:
    error = metrics.estimate(runs, ONE)
    assert error is not None
    return error


def test_an_interval_over_seeds_is_scipys() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert metrics.mean_interval(_runs([values]), ONE) == pytest.approx(tuple(interval))
    assert metrics.p_value(_estimate(_runs([values]))) == pytest.approx(
        stats.ttest_1samp(values, 0).pvalue
    )


def test_from_three_bases_on_the_interval_is_over_bases() -> None:
    cells = np.random.default_rng(0).normal(0.7, 0.02, (3, 5))
    interval = stats.ttest_1samp(cells.mean(1), 0).confidence_interval(0.95)
    runs = _runs(cells)
    assert metrics.mean_interval(runs, ONE) == pytest.approx(tuple(interval))
    assert metrics.drawn_levels(runs) == ("bases", "seeds")
    two = _runs(cells[:2])  # conditional on these bases
    interval = stats.ttest_1samp(cells[:2].mean(0), 0).confidence_interval(0.95)
    assert metrics.mean_interval(two, ONE) == pytest.approx(tuple(interval))
    assert metrics.drawn_levels(two) == ("seeds",)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_fewer_than_three_draws_have_no_interval(shape: tuple[int, int]) -> None:
    runs = _runs(np.random.default_rng(0).random(shape))
    assert metrics.drawn_levels(runs) == () and metrics.estimate(runs, ONE) is None
    assert metrics.mean_interval(runs, ONE) is None


def test_one_seed_of_three_bases_is_enough_where_each_has_its_own() -> None:
    cells = [[0.7], [0.75], [0.72]]
    assert metrics.drawn_levels(_runs(cells)) == ("bases", "seeds")
    assert metrics.drawn_levels(_runs(cells, crossed=True)) == ("bases",)  # given that seed


def test_crossed_bases_and_seeds_add_their_mean_squares() -> None:
    """Against the table of a two-way analysis of variance, written out."""
    rng = np.random.default_rng(1)
    cells = rng.normal(0, 0.05, (4, 1)) + rng.normal(0, 0.05, (1, 5)) + rng.normal(0, 0.005, (4, 5))
    base, seed = cells.mean(1), cells.mean(0)
    ms_base, ms_seed = 5 * base.var(ddof=1), 4 * seed.var(ddof=1)
    ms_error = ((cells - base[:, None] - seed + cells.mean()) ** 2).sum() / 12
    error = _estimate(_runs(cells, crossed=True))
    expected = (ms_base + ms_seed - ms_error) / 20
    assert error.variance == pytest.approx(expected)
    total = ms_base + ms_seed - ms_error
    assert error.df == pytest.approx(total**2 / (ms_base**2 / 3 + ms_seed**2 / 4))
    assert error.variance > _estimate(_runs(cells)).variance  # which leaves the seeds' part out


def test_a_crossed_level_without_an_effect_is_pooled() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        cells = rng.normal(0, 1, (1, 5)) * 3 + rng.normal(0, 1, (4, 5))
        base = cells.mean(1)
        ms_base = 5 * base.var(ddof=1)
        ms_error = ((cells - base[:, None] - cells.mean(0) + cells.mean()) ** 2).sum() / 12
        error = _estimate(_runs(cells, crossed=True))
        pooled = ms_base < stats.f.ppf(POOL_QUANTILE, 3, 12) * ms_error
        assert (error.df == pytest.approx(4)) == pooled  # the seeds' alone


def test_items_that_all_runs_share_add_their_variance() -> None:
    """Identical results at every seed are no evidence about other test items."""
    rng = np.random.default_rng(2)
    right = rng.random((1, 400)) < 0.7
    groups = np.arange(400)
    noise = [right ^ (rng.random((1, 400)) < 0.02) for _ in range(5)]
    shared = metrics.runs_of([noise], [[groups] * 5])
    own = metrics.runs_of([noise], [[groups + 400 * s for s in range(5)]])
    item_variance = right.var() / 400
    assert _estimate(shared).variance == pytest.approx(item_variance, rel=0.15)
    assert _estimate(own).variance < item_variance / 10
    assert _estimate(shared).df > 50 * _estimate(own).df
    twins = metrics.runs_of(
        [[np.repeat(run, 4, axis=1) for run in noise]], [[np.repeat(groups, 4)] * 5]
    )
    assert _estimate(twins).variance == pytest.approx(_estimate(shared).variance, rel=1e-6)


def test_the_items_of_a_run_give_the_error_of_its_mean() -> None:
    """Of one group nothing is known, and the numbers of groups may have gaps."""
    right = np.array([[True, False, True, True]])
    for groups in (np.arange(4), np.array([7, 0, 90, 3])):
        within = metrics.runs_of([[right]], [[groups]]).within
        assert within is not None and within[0, 0] == pytest.approx(right.var(ddof=1) / 4)
    single = metrics.runs_of([[right]], [[np.zeros(4, dtype=np.int64)]]).within
    assert single is not None and np.isinf(single).all()


def test_numbers_of_groups_with_gaps_change_no_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first, second, groups = rng.random(40) < 0.8, rng.random(40) < 0.5, np.arange(40) // 2
    ends = metrics.difference_item_interval(first, second, groups, n_resamples=200)
    assert metrics.difference_item_interval(first, second, 9 * groups, n_resamples=200) == ends


def test_bad_shapes_are_one_line() -> None:
    right = np.ones((3, 10), dtype=bool)
    with pytest.raises(W2SError, match="expected \\(models, items\\)") as err:
        metrics.runs_of([[right, right]], [[np.arange(10), np.arange(9)]])
    assert "\n" not in str(err.value)
    with pytest.raises(W2SError, match="bases, seeds, models"):
        metrics.Runs(np.ones((3, 2)))


def _fieller(gain: np.ndarray, gap: np.ndarray) -> tuple[float, float]:
    """Return the closed form: roots of (mean - r mean)^2 = t^2 var(gain - r gap) / S."""
    n = len(gain)
    t = stats.t.ppf(0.975, n - 1) ** 2 / n
    cov = np.cov(gain, gap)
    a = gap.mean() ** 2 - t * cov[1, 1]
    b = gain.mean() * gap.mean() - t * cov[0, 1]
    c = gain.mean() ** 2 - t * cov[0, 0]
    root = math.sqrt(b * b - a * c)
    return (b - root) / a, (b + root) / a


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_of_pgr_is_fiellers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    accuracy = np.array([0.7, 0.8, 0.9]) + rng.normal(0, 0.02, (1, 5, 3))
    weak, student, ceiling = accuracy[0].T
    interval = metrics.pgr_interval(metrics.Runs(accuracy))
    assert interval == pytest.approx(_fieller(student - weak, ceiling - weak), abs=1e-9)


def test_the_ends_of_an_interval_are_where_the_set_ends() -> None:
    rng = np.random.default_rng(3)
    accuracy = np.array([0.7, 0.8, 0.9]) + rng.normal(0, 0.02, (3, 4, 3))
    for crossed in (False, True):
        runs = metrics.Runs(accuracy, crossed=crossed)
        interval = metrics.pgr_interval(runs)
        assert interval is not None
        low, high = interval
        inside = np.linspace(low + 1e-6, high - 1e-6, 50)
        assert all(metrics.pgr_is_in_interval(runs, r) for r in inside)
        assert not metrics.pgr_is_in_interval(runs, low - 1e-6)
        assert not metrics.pgr_is_in_interval(runs, high + 1e-6)


def test_a_gap_that_could_be_zero_has_an_interval_without_end() -> None:
    accuracy = np.array([[[0.80, 0.82, 0.83], [0.79, 0.83, 0.84], [0.81, 0.82, 0.82]]])
    runs = metrics.Runs(accuracy)
    gap = metrics.estimate(runs, metrics.GAP)
    assert gap is not None and abs(gap.mean) < metrics.half_width(gap)
    assert metrics.pgr_interval(runs) == (-math.inf, math.inf)


@pytest.mark.parametrize("seed", range(100))
def test_an_interval_ends_exactly_where_the_gap_is_clear(seed: int) -> None:
    rng = np.random.default_rng(seed)
    accuracy = np.array([0.7, 0.72, 0.73]) + rng.normal(0, 0.02, (1, 4, 3))
    interval = metrics.pgr_interval(metrics.Runs(accuracy))
    clear = stats.ttest_1samp(accuracy[0, :, 2] - accuracy[0, :, 0], 0).pvalue <= 0.05
    assert interval is not None
    assert (interval != (-math.inf, math.inf)) == clear


def test_nothing_varies_or_no_gap_has_no_interval() -> None:
    same = np.broadcast_to([0.7, 0.8, 0.9], (1, 3, 3))
    assert metrics.pgr_interval(metrics.Runs(same)) is None
    flat = np.array([[[0.7, 0.8, 0.7], [0.71, 0.8, 0.71], [0.7, 0.81, 0.7]]])
    assert metrics.pgr_interval(metrics.Runs(flat)) is None
