"""Votes: thresholds, quantiles at the class balance, ranks within a problem, filters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError


def test_a_score_at_the_threshold_is_accepted() -> None:
    scores = [[0.5, 0.1], [0.49, 0.9]]
    assert V.binarize(scores, 0.5).tolist() == [[1, 0], [0, 1]]
    assert V.binarize(scores, [0.5, 0.1]).tolist() == [[1, 1], [0, 1]]
    assert V.binarize(scores, 0.5).dtype == np.int8


@pytest.mark.parametrize("threshold", [np.nan, [0.1, 0.2, 0.3], [[0.1, 0.2]], np.inf])
def test_a_wrong_threshold_is_named(threshold: Any) -> None:
    with pytest.raises(W2SError, match="threshold is .*expected one finite number or 2"):
        V.binarize([[0.5, 0.1], [0.4, 0.9]], threshold)


def test_a_threshold_that_decides_nothing_is_named() -> None:
    with pytest.raises(W2SError, match="threshold 7 every verifier votes alike.*from 0.1 to 0.9"):
        V.binarize([[0.5, 0.1], [0.4, 0.9]], 7)
    assert V.binarize([[0.5, 0.1]], 0.2).tolist() == [[1, 0]]  # a single response is no evidence


@pytest.mark.parametrize("balance", [0.07, 0.1, 0.29, 0.3, 0.5, 0.99])
def test_quantile_thresholds_accept_the_balance(balance: float) -> None:
    scores = np.random.default_rng(0).normal(size=(100, 3)) * [1, 5, 0.01] + [0, 9, -4]
    votes = V.binarize(scores, V.quantile_thresholds(scores, balance))
    np.testing.assert_array_equal(votes.sum(0), round(100 * balance))


def test_verdicts_keep_their_threshold_and_ties_are_accepted_together() -> None:
    verdicts = np.array([1, 1, 1, 0, 0, 0])
    tied = np.array([3.0, 2.0, 2.0, 2.0, 1.0, 0.0])
    scores = np.stack([verdicts, tied], 1)
    for balance in (1 / 3, 5 / 6):
        votes = V.binarize(scores, V.quantile_thresholds(scores, balance))
        assert votes[:, 0].tolist() == verdicts.tolist()
        assert votes[:, 1].tolist() == [1, 1, 1, 1, balance > 0.5, 0]


@pytest.mark.parametrize("balance", [0, 1, -0.5, 1.5, np.nan, True, "half", None])
def test_a_balance_that_is_no_share_is_named(balance: Any) -> None:
    scores, problems = [[0.1], [0.2]], [0, 0]
    for call in (
        lambda: V.quantile_thresholds(scores, balance),
        lambda: V.binarize_within_problems(scores, problems, balance),
    ):
        with pytest.raises(W2SError, match=r"balance( is .*in \(0, 1\)|: not a table)"):
            call()


def slow_within(scores: np.ndarray, problems: np.ndarray, balance: float) -> np.ndarray:
    """Votes by the definition, with fractions."""
    from fractions import Fraction

    votes = np.empty(scores.shape, np.int8)
    for i, j in np.ndindex(scores.shape):
        own = scores[problems == problems[i], j]
        below, equal = int((own < scores[i, j]).sum()), int((own == scores[i, j]).sum())
        u = Fraction(2 * below + equal, 2 * len(own))
        edge = 1 - Fraction(balance).limit_denominator(1000)
        votes[i, j] = -1 if u == edge else u > edge
    return votes


@pytest.mark.parametrize("balance", [0.1, 0.3, 0.5, 0.7])
def test_within_problems_votes_follow_the_definition(balance: float) -> None:
    rng = np.random.default_rng(3)
    problems = rng.integers(0, 30, 200)  # ragged and not in order
    scores = rng.integers(0, 6, (200, 3)).astype(float)
    got = V.binarize_within_problems(scores, problems, balance)
    np.testing.assert_array_equal(got, slow_within(scores, problems, balance))
    shifted = scores + rng.normal(size=30).round(1)[problems][:, None]
    np.testing.assert_array_equal(V.binarize_within_problems(shifted, problems, balance), got)


def test_pairs_are_compared_and_equal_scores_abstain() -> None:
    votes = V.binarize_within_problems([[1, 5], [2, 5], [9, 1], [3, 0]], ["p", "p", "q", "q"], 0.5)
    assert votes.tolist() == [[0, -1], [1, -1], [1, 1], [0, 0]]
    with pytest.raises(W2SError, match="each of 2 problems has one response"):
        V.binarize_within_problems([[1.0], [2.0]], ["p", "q"], 0.5)


# Shares of acceptances: 0.05, 0.3, 0.6, 0.95.
MARGINALS = np.stack([np.arange(100) < q for q in (5, 30, 60, 95)], 1).astype(int)


@pytest.mark.parametrize(
    ("rule", "balance", "kept"),
    [
        ("all", None, [1, 2]),
        ("small", None, [2, 3]),
        ("large", None, [0, 1]),
        ("adaptive", 0.1, [0, 1]),
        ("adaptive", 0.5, [1, 2]),
        ("adaptive", 0.9, [2, 3]),
    ],
)
def test_rules_keep_verifiers_by_their_marginal(
    rule: str, balance: float | None, kept: list[int]
) -> None:
    keep = V.keep_by_marginal(MARGINALS, rule, balance)
    assert np.flatnonzero(keep).tolist() == kept


def test_abstentions_do_not_count_and_votes_are_checked() -> None:
    votes = np.array([[1, 1], [0, -1], [-1, -1], [-1, -1]])
    assert V.keep_by_marginal(votes).tolist() == [True, False]
    with pytest.raises(W2SError, match=r"verifier 0 for row 0 is 0.5; .*call binarize first"):
        V.keep_by_marginal([[0.5]])
    with pytest.raises(W2SError, match="keeps none of 2 verifiers, which accept shares of 1, nan"):
        V.keep_by_marginal([[1, -1], [1, -1]])
    with pytest.raises(W2SError, match="did you mean 'small'"):
        V.keep_by_marginal(votes, "small_")
    with pytest.raises(W2SError, match="'adaptive' needs balance"):
        V.keep_by_marginal(votes, "adaptive")
