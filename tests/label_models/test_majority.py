"""Majority and weighted vote, by hand and on planted votes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.planted_votes import draw_votes, planted

from w2s_fast import W2SError
from w2s_fast.label_models import WeightedVote, majority_vote
from w2s_fast.label_models import majority as module
from w2s_fast.label_models.majority import majority_balance


def test_majority_by_hand() -> None:
    votes = [[0, 0, 1], [0, 1, -1], [-1, 2, -1], [-1, -1, -1]]
    expected = [[2 / 3, 1 / 3, 0], [1 / 2, 1 / 2, 0], [0, 0, 1], [0.5, 0.3, 0.2]]
    got = majority_vote(votes, 3, class_balance=[0.5, 0.3, 0.2])
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert majority_vote([[0], [-1]], 2).tolist() == [[1, 0], [0.5, 0.5]]


def test_weights_by_hand() -> None:
    got = majority_vote([[0, 1, 1], [-1, 0, 1]], 2, weights=[3, 1, 0.5])
    expected = torch.tensor([[3 / 4.5, 1.5 / 4.5], [1 / 1.5, 0.5 / 1.5]], dtype=torch.float64)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, 1]}, "weights have shape"),
        ({"weights": [1, -1, 1]}, "weight of source 1 is -1.0"),
        ({"weights": [1, 1, math.nan]}, "weight of source 2 is nan"),
        ({"weights": ["a", "b", "c"]}, "weights cannot be read as numbers"),
        ({"class_balance": ["a", "b"]}, "class_balance .* cannot be read as 2 probabilities"),
        ({"class_balance": [0.5, 0.6]}, "class_balance sums to 1.1; expected 1"),
        ({"class_balance": [0.5, math.nan]}, r"class_balance\[1\] is nan"),
        ({"class_balance": [1.0, 0.0]}, r"class_balance\[0\] is 1.0"),
        ({"class_balance": [1 / 3] * 3}, "class_balance has shape"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=message):
        majority_vote([[0, 1, 0]], 2, **options)


def test_agreement_leaves_the_source_out() -> None:
    """Ties among the others count as half, and rows without others do not count."""
    votes = torch.tensor([[0, 0, -1], [1, 1, 1], [0, -1, -1], [1, 1, -1], [0, 1, 1]])
    # source 0: 1 + 1 + 1 + 0 of 4; source 1: 1 + 1 + 1 + .5 of 4; source 2: 1 + .5 of 2
    fitted = WeightedVote(2, smoothing=2.0).fit(votes)
    assert fitted.agreement.tolist() == pytest.approx([4.6 / 6, 5.1 / 6, 3.1 / 4])


def coins(accuracies: list[float], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(votes, classes) of sources of two classes that never abstain."""
    a = torch.tensor(accuracies, dtype=torch.float64)
    rows = torch.stack([a, 1 - a, torch.zeros_like(a)], 1)
    classes = torch.randint(2, (n,), generator=torch.Generator().manual_seed(0))
    return draw_votes(torch.stack([rows, rows[:, [1, 0, 2]]], 1), classes, 0), classes


def test_weighted_vote_follows_the_accurate_sources() -> None:
    votes, classes = coins([0.95, 0.9, 0.9] + [0.55] * 6, 4000)
    weighted = WeightedVote(2).fit(votes)
    right = float((weighted.posterior(votes).argmax(1) == classes).double().mean())
    plain = float((majority_vote(votes, 2).argmax(1) == classes).double().mean())
    assert plain < 0.9 < right
    assert weighted.weights[:3].min() > 2 * weighted.weights[3:].max()


def test_partial_fit_equals_one_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    p = planted(900, 6, [0.5, 0.3, 0.2])
    whole = WeightedVote(3).fit(p.votes)
    monkeypatch.setattr(module, "_ROWS", 64)  # a batch has several blocks
    parts = WeightedVote(3)
    for batch in p.votes.split(250):
        parts.partial_fit(batch)
    torch.testing.assert_close(parts.weights, whole.weights)
    torch.testing.assert_close(parts.posterior(p.votes), whole.posterior(p.votes))


def test_weights_are_log_odds_of_k_classes() -> None:
    p = planted(2000, 6, [0.25] * 4, seed=2)
    w = WeightedVote(4).fit(p.votes)
    torch.testing.assert_close(w.weights, torch.log(3 * w.agreement / (1 - w.agreement)))


def test_balance_of_the_majority() -> None:
    votes = torch.tensor([[0, 0, 1], [1, -1, -1], [-1, -1, -1]])
    assert majority_balance(votes, 2).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_posterior_before_fit_and_other_sources() -> None:
    with pytest.raises(W2SError, match="call fit"):
        WeightedVote(2).posterior([[0, 1]])
    p = planted(100, 4, [0.5, 0.5])
    with pytest.raises(W2SError, match="votes have 3 sources; the model was fitted on 4"):
        WeightedVote(2).fit(p.votes).posterior(p.votes[:, :3])


def test_votes_at_random_get_no_weight() -> None:
    votes, _ = coins([0.5, 0.9, 0.9, 0.9], 3000)
    assert WeightedVote(2).fit(votes).weights[0] < 0.1


def test_sources_that_disagree_more_than_chance() -> None:
    votes = torch.tensor([[0, 1, -1], [-1, 0, 1], [1, -1, 0], [0, 1, -1]])
    with pytest.raises(W2SError, match="agree with the majority of the others in 0.000"):
        WeightedVote(2).fit(votes)
