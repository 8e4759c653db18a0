"""Counts by hand: true against predicted classes, and voters against one another."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast import metrics
from w2s_fast.errors import W2SError


def test_rows_are_true_classes_and_columns_predicted_ones() -> None:
    gold, chosen = np.array([0, 0, 0, 1, 2]), np.array([0, 2, 2, 1, 0])
    counts = metrics.confusion(chosen, gold, 4)
    assert counts.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    ("chosen", "gold"), [([0, 3], [0, 1]), ([0, 1], [0, -1]), ([0], [0, 1]), ([0.0, 1.0], [0, 1])]
)
def test_classes_that_do_not_fit_are_errors(chosen: list[float], gold: list[int]) -> None:
    with pytest.raises(W2SError, match="labels"):
        metrics.confusion(np.array(chosen), np.array(gold), 3)


def test_voters_are_compared_where_both_vote() -> None:
    votes = np.array([[0, 0, -1], [1, 0, -1], [2, 2, 2], [-1, 1, -1], [1, -1, -1]])
    share, both = metrics.vote_agreement(votes)
    assert both.tolist() == [[4, 3, 1], [3, 4, 1], [1, 1, 1]]
    assert share[0, 1] == share[1, 0] == pytest.approx(2 / 3)
    assert share.diagonal().tolist() == [1, 1, 1] and share[0, 2] == 1
    never, n = metrics.vote_agreement(np.array([[0, -1], [-1, 0]]))
    assert np.isnan(never[0, 1]) and n[0, 1] == 0
    assert np.isnan(metrics.vote_agreement(np.full((2, 2), -1))[0]).all()


@pytest.mark.parametrize("votes", [np.zeros(3, int), np.zeros((2, 2)), [["a"]]])
def test_votes_are_a_matrix_of_integers(votes: np.ndarray) -> None:
    with pytest.raises(W2SError, match="expected integers"):
        metrics.vote_agreement(votes)
