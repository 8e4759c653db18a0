"""Normalised scores: known values, invariances, and scores that were not seen before."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError


def test_min_max_is_linear_and_reaches_both_ends() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 3)) * [1, 10, 100]
    got = V.min_max_scores(scores)
    assert (got.min(0) == 0).all() and (got.max(0) == 1).all()
    np.testing.assert_allclose(got, (scores - scores.min(0)) / np.ptp(scores, axis=0), rtol=1e-12)


def test_scores_within_the_range_are_left_as_they_are() -> None:
    scores = np.array([[0.2, 0.2, 0.0], [0.4, 1.2, 1.0], [0.3, 0.7, 1.0]])
    got = V.min_max_scores(scores)
    np.testing.assert_array_equal(got[:, [0, 2]], scores[:, [0, 2]])
    np.testing.assert_allclose(got[:, 1], [0, 1, 0.5])


def test_huge_scores_do_not_overflow() -> None:
    with np.errstate(all="raise"):
        got = V.min_max_scores([[-1.5e308], [1.5e308], [0.0]])
    np.testing.assert_allclose(got[:, 0], [0, 1, 0.5])


def test_the_reference_sets_the_range_of_new_scores() -> None:
    reference = np.array([[0.0], [10.0]])
    new = np.array([[5.0], [-3.0], [20.0]])
    np.testing.assert_array_equal(V.min_max_scores(new, reference)[:, 0], [0.5, 0, 1])
    np.testing.assert_array_equal(V.quantile_scores(new, reference)[:, 0], [0.5, 0, 1])
    one = V.min_max_scores(new[:1], reference)  # one new row is constant, and allowed
    assert one.tolist() == [[0.5]]


def test_quantiles_are_mid_ranks_and_depend_on_the_order_alone() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 10, (200, 4)).astype(float)  # many ties
    got = V.quantile_scores(scores)
    expected = (rankdata(scores, axis=0) - 0.5) / 200
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_array_equal(V.quantile_scores(np.exp(scores)), got)
    np.testing.assert_allclose(got.mean(0), 0.5)


def test_naive_average_is_the_mean_of_one_scale() -> None:
    scores = np.array([[0.0, 1.0], [0.5, 0.25]])
    np.testing.assert_array_equal(V.naive_average(scores), [0.5, 0.375])
    with pytest.raises(W2SError, match="verifier 1 for row 0 is 1.5; an average needs one scale"):
        V.naive_average([[0.2, 1.5]])
