"""Selection, its accuracy, pass@k and the gap, against definitions and enumeration."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest

from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError

PROBLEMS = np.array(["p", "q", "p", "q", "q", "r"])
SCORES = np.array([0.2, 0.9, 0.7, 0.9, 0.1, -3.0])
GOLD = np.array([0, 1, 1, 0, 0, 0])


def test_the_first_of_the_best_responses_is_selected() -> None:
    assert V.select(SCORES, PROBLEMS).tolist() == [2, 1, 5]
    assert V.select(SCORES[::-1], PROBLEMS[::-1]).tolist() == [0, 2, 3]  # order r, q, p


def test_ties_count_with_the_share_of_right_responses() -> None:
    assert V.selection_outcomes(SCORES, PROBLEMS, GOLD).tolist() == [1, 0.5, 0]
    assert V.selection_accuracy(SCORES, PROBLEMS, GOLD) == 0.5


def test_the_accuracy_does_not_depend_on_the_order_of_responses() -> None:
    rng = np.random.default_rng(0)
    problems, gold = rng.integers(0, 40, 300), rng.random(300) < 0.3
    scores = rng.integers(0, 4, 300)  # many ties
    expected = V.selection_accuracy(scores, problems, gold)
    drawn = []
    for _ in range(400):
        order = rng.permutation(300)
        chosen = V.select(scores[order], problems[order])
        drawn.append(gold[order][chosen].mean())
        assert V.selection_accuracy(scores[order], problems[order], gold[order]) == pytest.approx(
            expected
        )
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected) < 4 * error  # the expectation of the first at random


def test_pass_at_k_is_the_share_of_draws_with_a_right_response() -> None:
    for n, c, k in [(5, 2, 1), (5, 2, 3), (5, 2, 4), (6, 0, 3), (6, 6, 1), (4, 1, 4)]:
        draws = list(combinations(range(n), k))
        share = np.mean([min(draw) < c for draw in draws])  # responses 0 .. c-1 are right
        assert V.pass_at_k(n, [c], k)[0] == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize("k", [1, 2, 10, 100])
def test_pass_at_k_keeps_its_digits(k: int) -> None:
    """Relative to exact fractions, also where the result is tiny."""
    n = np.array([100, 1000, 100_000, 10_000_000])
    for c in (1, 5, 50):
        got = V.pass_at_k(n, np.full(4, c), k)
        exact = [float(1 - Fraction(comb(int(m) - c, k), comb(int(m), k))) for m in n[:3]]
        np.testing.assert_allclose(got[:3], exact, rtol=1e-13)
        assert got[3] == pytest.approx(c * k / 1e7, rel=1e-3)


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(1)
    right = rng.binomial(10, 0.2, 200_000)
    truth = 1 - 0.8**5
    assert V.pass_at_k(10, right, 5).mean() == pytest.approx(truth, abs=2.5e-3)
    assert abs((1 - (1 - right / 10) ** 5).mean() - truth) > 0.02  # the plug-in estimate is biased


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (5, [1, 2], 6, "problem 0 has 5 responses; expected at least k = 6"),
        ([5, 3], [1, 2], 4, "problem 1 has 3 responses; expected at least k = 4"),
        (5, [1, 6], 2, "problem 1 has 6 right responses; expected at most"),
        (5, [1, -1], 2, r"n_right is \[1, -1\]; expected integers of at least 0"),
        (5, [1], 0, "k is 0; expected an integer of at least 1"),
        (5, [1], 2.0, "k is 2.0"),
        ([5, 5], 1, 1, r"n_right has shape \(\) and n_responses \(2,\)"),
        ([5, 5], [1, 1, 1], 1, r"n_right has shape \(3,\) and n_responses \(2,\)"),
        (5, [0.5], 1, r"n_right is \[0.5\]; expected integers"),
    ],
)
def test_wrong_counts_are_named(n: Any, c: Any, k: Any, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        V.pass_at_k(n, c, k)


def test_the_gap_is_pass_at_k_minus_selection_accuracy() -> None:
    counts = V.count_right(PROBLEMS, GOLD)
    assert [c.tolist() for c in counts] == [[2, 3, 1], [1, 1, 0]]
    assert V.generation_verification_gap(SCORES, PROBLEMS, GOLD) == pytest.approx(2 / 3 - 1 / 2)
    at_one = (1 / 2 + 1 / 3 + 0) / 3 - 1 / 2
    assert V.generation_verification_gap(SCORES, PROBLEMS, GOLD, k=1) == pytest.approx(at_one)
    assert V.generation_verification_gap(GOLD, PROBLEMS, GOLD) == pytest.approx(0)
    with pytest.raises(W2SError, match="problem 2 has 1 responses; expected at least k = 2"):
        V.generation_verification_gap(SCORES, PROBLEMS, GOLD, k=2)


def test_the_majority_verifier_counts_answers_within_a_problem() -> None:
    answers = ["4", "4", "5", None, "7", "8", "1", "", "4"]
    problems = ["p"] * 4 + ["q"] * 2 + ["r"] * 2 + ["s"]
    expected = [1, 1, 0.5, 0, 1, 1, 1, 0, 1]
    assert V.majority_verifier(answers, problems).tolist() == expected


def test_responses_without_an_answer_do_not_agree() -> None:
    assert V.majority_verifier([None, None, "", "3"], ["p"] * 4).tolist() == [0, 0, 0, 1]
    assert V.majority_verifier([None, None], ["p"] * 2).tolist() == [0, 0]
    assert V.majority_verifier([0, 0, 1], ["p"] * 3).tolist() == [1, 1, 0]  # 0 is an answer
    with pytest.raises(W2SError, match=r"answers\[1\] is nan; expected a string"):
        V.majority_verifier(["1", float("nan")], ["p", "p"])
