"""Paired differences and Holm's correction: against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from w2s_fast import metrics


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    accuracy = (
        np.array([0.82, 0.80]) + rng.normal(0, 0.05, (1, 5, 1)) + rng.normal(0, 0.005, (1, 5, 2))
    )
    difference = metrics.paired_difference(metrics.Runs(accuracy))
    test = stats.ttest_rel(accuracy[0, :, 0], accuracy[0, :, 1])
    low, high = test.confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((low, high))
    assert difference.p == pytest.approx(test.pvalue)
    alone = metrics.mean_interval(metrics.Runs(accuracy), np.array([1.0, 0.0]))
    assert alone is not None and alone[1] - alone[0] > 2 * (high - low)


def test_identical_students_do_not_differ() -> None:
    accuracy = np.repeat(np.array([[[0.8], [0.7], [0.9]]]), 2, axis=2)
    difference = metrics.paired_difference(metrics.Runs(accuracy))
    assert (difference.mean, difference.low, difference.high, difference.p) == (0, None, None, 1)


def test_two_seeds_have_a_difference_without_an_interval() -> None:
    difference = metrics.paired_difference(metrics.Runs(np.array([[[0.8, 0.7], [0.9, 0.7]]])))
    assert difference.mean == pytest.approx(0.15)
    assert (difference.low, difference.high, difference.p) == (None, None, None)


def test_holm_by_hand() -> None:
    assert metrics.holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert metrics.holm([0.5, 0.6]) == [1.0, 1.0] and metrics.holm([]) == []


def test_holm_keeps_the_rate_of_any_false_discovery() -> None:
    """Ten methods without an effect: some p below .05 in 5 % of tables, 40 % without correction."""
    rng = np.random.default_rng(1)
    tables = rng.random((2000, 10))
    corrected = np.array([metrics.holm(list(p)) for p in tables])
    assert (corrected.min(1) < 0.05).mean() == pytest.approx(0.05, abs=0.015)
    assert (tables.min(1) < 0.05).mean() > 0.3
