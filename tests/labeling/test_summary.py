"""Summaries of functions: Snorkel's numbers, Wilson's interval, and how it is shown."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from w2s_fast import W2SError
from w2s_fast.labeling import function_summary, wilson_interval

# The matrix of the examples of Snorkel's LFAnalysis.
VOTES = [[-1, 0, 0], [-1, -1, -1], [1, 0, -1], [-1, 0, -1], [0, 0, 0]]


def test_numbers_of_snorkel() -> None:
    s = function_summary(VOTES)
    assert s.polarity == ((0, 1), (0,), (0,))
    assert s.coverage.tolist() == pytest.approx([0.4, 0.8, 0.4])
    assert s.overlaps.tolist() == pytest.approx([0.4, 0.6, 0.4])
    assert s.conflicts.tolist() == pytest.approx([0.2, 0.2, 0.0])
    assert s.names == ("0", "1", "2") and s.votes.n_uncovered == 1
    assert s.n_labeled.tolist() == [0, 0, 0] and bool(s.accuracy.isnan().all())


def test_accuracy_is_of_labeled_rows_with_a_vote() -> None:
    s = function_summary(VOTES, [1, 0, 1, -1, 1], names=["a", "b", "c"])
    assert s.n_labeled.tolist() == [2, 3, 2]
    assert s.accuracy.tolist() == pytest.approx([0.5, 0.0, 0.0])
    assert s.names == ("a", "b", "c")
    assert s.low[1] == 0.0 and float(s.high[1]) == pytest.approx(0.5615, abs=1e-4)


def by_hand(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Overlaps and conflicts, row by row."""
    n, m = votes.shape
    overlaps, conflicts = np.zeros(m), np.zeros(m)
    for row in votes:
        for j in range(m):
            others = [v for i, v in enumerate(row) if i != j and v >= 0]
            overlaps[j] += row[j] >= 0 and bool(others)
            conflicts[j] += row[j] >= 0 and any(v != row[j] for v in others)
    return overlaps / n, conflicts / n


@given(st.integers(1, 12), st.integers(1, 5), st.integers(2, 4), st.randoms(use_true_random=False))
def test_overlaps_and_conflicts_by_hand(n: int, m: int, k: int, random: Any) -> None:
    votes = np.array([[random.randint(-1, k - 1) for _ in range(m)] for _ in range(n)])
    s = function_summary(votes, n_classes=k)
    overlaps, conflicts = by_hand(votes)
    np.testing.assert_allclose(s.overlaps, overlaps, atol=1e-12)
    np.testing.assert_allclose(s.conflicts, conflicts, atol=1e-12)
    order = random.sample(range(m), m)
    shuffled = function_summary(votes[:, order], n_classes=k)
    assert torch.equal(shuffled.conflicts, s.conflicts[order])


@given(st.integers(1, 300), st.data())
def test_interval_is_that_of_scipy(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson_interval(torch.tensor([right]), torch.tensor([n]))
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert float(low) == pytest.approx(expected.low, abs=1e-12)
    assert float(high) == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= float(low) <= right / n <= float(high) <= 1


def test_no_votes_have_no_interval() -> None:
    low, high = wilson_interval(torch.tensor([0]), torch.tensor([0]))
    assert bool(low.isnan().all()) and bool(high.isnan().all())


def test_table() -> None:
    text = str(function_summary(VOTES, [1, 0, 1, -1, 1], names=["a", "b" * 60, "c"]))
    lines = text.splitlines()
    heads = ["function", "votes", "coverage", "overlaps", "conflicts", "labeled", "accuracy"]
    assert lines[0].split()[:-2] == heads
    assert " ".join(lines[1].split()) == "a 0,1 0.400 0.400 0.200 2 0.500 0.095 – 0.905"
    assert lines[2].startswith("b" * 37 + "...") and lines[-1] == "4 of 5 rows are covered"
    assert str(function_summary([[-1], [0]])).splitlines()[1].split()[-1] == "0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VOTES, [0, 1]), "labels have shape (2,); expected (5,)"),
        ((VOTES, [0.0] * 5), "labels have dtype torch.float64; expected integers, -1 for no label"),
        ((VOTES, [0, 0, 0, 0, -2]), "a label is -2"),
        ((VOTES, [0, 0, 0, 0, 2], None, 2), "a label is 2; expected -1 to 1"),
        ((VOTES, None, ["a"]), "votes has 1 names; expected 3"),
        (([[0, -3]],), "vote of source 1 for row 0 is -3"),
        (([[0.5]],), "votes have dtype torch.float64"),
        (([0, 1],), "votes have shape (2,)"),
    ],
)
def test_wrong_input(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        function_summary(*arguments)
