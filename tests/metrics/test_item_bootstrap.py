"""Intervals over the test items of one run: known truth, groups, reproducibility."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast import metrics
from w2s_fast.metrics import item_bootstrap


def outcomes(weak: float, student: float, ceiling: float, n: int, seed: int) -> metrics.Outcomes:
    """Draw (n,) independent outcomes of the given accuracies."""
    rng = np.random.default_rng(seed)
    return metrics.Outcomes(*(rng.random(n) < a for a in (weak, student, ceiling)), np.arange(n))


def test_paired_error_is_smaller_and_clusters_make_it_larger() -> None:
    base = outcomes(0.8, 0.8, 0.8, 2000, 0)
    better = base.weak | (np.random.default_rng(1).random(2000) < 0.2)
    o = metrics.Outcomes(base.weak, base.weak, better, base.groups)
    independent = metrics.gap_se(o.weak.mean(), o.ceiling.mean(), 2000)
    diff = o.ceiling.astype(float) - o.weak
    assert metrics.paired_gap_se(o) == pytest.approx(diff.std(ddof=1) / np.sqrt(2000), rel=1e-3)
    assert metrics.paired_gap_se(o) < 0.6 * independent
    twins = metrics.Outcomes(*(np.repeat(m, 4) for m in (o.weak, o.student, o.ceiling)),
                             np.repeat(o.groups, 4))  # fmt: skip
    assert metrics.paired_gap_se(twins) == pytest.approx(metrics.paired_gap_se(o))
    one = metrics.Outcomes(*(m[:5] for m in (o.weak, o.student, o.ceiling)), np.zeros(5, int))
    assert metrics.paired_gap_se(one) == np.inf


def test_interval_covers_the_truth() -> None:
    """95 % intervals over 20 data sets: at least 15 cover (probability of fewer: 3e-4)."""
    truth = (0.8 - 0.7) / (0.95 - 0.7)
    covered = 0
    for seed in range(20):
        low, high = metrics.pgr_item_interval(outcomes(0.7, 0.8, 0.95, 400, seed), n_resamples=400)
        assert low < high
        covered += low <= truth <= high
    assert covered >= 15


def test_interval_is_reproducible_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = outcomes(0.7, 0.8, 0.95, 300, 0)
    first = metrics.pgr_item_interval(run, n_resamples=300)
    assert metrics.pgr_item_interval(run, n_resamples=300) == first
    monkeypatch.setattr(item_bootstrap, "_CHUNK_ITEMS", 300 * 7)
    chunked = metrics.pgr_item_interval(run, n_resamples=300)
    assert chunked == pytest.approx(first, abs=0.05)


def test_large_groups_widen_the_interval() -> None:
    o = outcomes(0.7, 0.8, 0.95, 400, 0)
    twins = metrics.Outcomes(*(np.repeat(m, 9) for m in (o.weak, o.student, o.ceiling)),
                             np.repeat(o.groups, 9))  # fmt: skip
    loose = metrics.Outcomes(twins.weak, twins.student, twins.ceiling, np.arange(3600))

    def width(x: metrics.Outcomes) -> float:
        low, high = metrics.pgr_item_interval(x, n_resamples=400)
        return high - low

    assert width(twins) == pytest.approx(width(o), rel=0.2)
    assert width(twins) > 2 * width(loose)


def test_a_difference_in_one_run_is_paired_by_item() -> None:
    rng = np.random.default_rng(3)
    second = rng.random(500) < 0.8
    first = second | (rng.random(500) < 0.1)  # never worse on an item
    low, high = metrics.difference_item_interval(first, second, np.arange(500))
    assert 0 < low < first.mean() - second.mean() < high < 0.05
    difference = first.astype(float) - second
    width = 2 * 1.96 * difference.std() / np.sqrt(500)
    assert high - low == pytest.approx(width, rel=0.1)
    large = np.repeat(np.arange(100), 5)
    shuffled = rng.permutation(500)  # groups without correlation change nothing
    low_g, high_g = metrics.difference_item_interval(first[shuffled], second[shuffled], large)
    assert high_g - low_g == pytest.approx(high - low, rel=0.25)


def test_draws_without_a_gap_leave_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    close = outcomes(0.6, 0.62, 0.66, 200, 3)
    low, high = metrics.pgr_item_interval(close)
    assert np.isfinite(low) and low < high and not recwarn.list
