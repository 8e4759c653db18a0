"""Dependent verifiers: planted copies are dropped, and what is left selects better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.planted_verifiers import PlantedVerifiers, planted_verifiers

from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError
from w2s_fast.label_models import DawidSkene


def with_copies(p: PlantedVerifiers, source: int, n: int, share: float) -> np.ndarray:
    """Votes of all verifiers and of n further ones that repeat one of them in a share of rows."""
    rng = np.random.default_rng(99)
    votes = (p.scores > 0.5).astype(np.int8)
    own = rng.random((len(votes), n)) < votes[:, source].mean()
    repeats = rng.random((len(votes), n)) < share
    return np.concatenate([votes, np.where(repeats, votes[:, [source]], own)], 1)


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_planted_copies(gold: bool, share: float) -> None:
    p = planted_verifiers(500, 8, 9)
    votes = with_copies(p, source=4, n=4, share=share)
    keep = V.keep_independent(votes, gold=p.gold if gold else None)
    group = [4, 9, 10, 11, 12]
    assert keep[group].sum() == 1
    assert keep[4] or share == 1.0 or not gold  # without labels copies look alike
    assert np.delete(keep, group).all()


@pytest.mark.parametrize("gold", [True, False])
def test_independent_verifiers_are_all_kept(gold: bool) -> None:
    for seed in range(3):
        p = planted_verifiers(500, 8, 12, seed=seed)
        votes = (p.scores > 0.5).astype(np.int8)
        assert V.keep_independent(votes, gold=p.gold if gold else None).all()


def test_selection_is_better_without_copies() -> None:
    """Eight copies of a bad verifier outvote the others in a model of independence."""
    p = planted_verifiers(400, 8, 9)
    votes = with_copies(p, source=0, n=8, share=0.95)

    def accuracy(votes: np.ndarray) -> float:
        m = DawidSkene(2, class_balance=[0.7, 0.3]).fit(votes)
        scores = V.weaver_log_odds(votes, m.prior, m.rates)
        return V.selection_accuracy(scores, p.problems, p.gold)

    kept = votes[:, V.keep_independent(votes)]
    independent = accuracy(votes[:, :9])
    assert accuracy(kept) > accuracy(votes) + 0.1
    assert accuracy(kept) == pytest.approx(independent, abs=0.02)


def test_correlations_within_classes_by_hand() -> None:
    """Equal votes in 3 of 4 rows of each class are a correlation of 1/2 within classes."""
    a = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    b = np.array([0, 0, 1, 1, 0, 1, 0, 1])
    c = np.array([0, 1, 0, 1, 1, 0, 1, 0])
    gold = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    votes = np.stack([a, b, c], 1)  # r_ab = 1/2 (1 and 0 by class), r_bc = 0, r_ac = 0
    assert V.keep_independent(votes, gold=gold, limit=0.51).all()
    assert V.keep_independent(votes, gold=gold, limit=0.49).sum() == 2


def test_the_more_informative_one_of_a_pair_stays() -> None:
    p = planted_verifiers(1000, 4, 6)
    votes = with_copies(p, source=5, n=1, share=0.7)
    assert V.keep_independent(votes, gold=p.gold).tolist() == [True] * 6 + [False]
    moved = votes[:, [6, 0, 1, 2, 3, 4, 5]]
    assert V.keep_independent(moved, gold=p.gold).tolist() == [False] + [True] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 1.5}, "limit is 1.5"),
        ({"gold": [1] * 7}, r"gold has shape \(7,\)"),
        ({"gold": [1] * 8}, "gold is True for all 8 rows"),
        ({"model": DawidSkene(2)}, "model has rates of shape None; expected a label model"),
        ({"model": DawidSkene(2), "gold": [0, 1] * 4}, "model and gold are both given"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    votes = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]] * 2)
    with pytest.raises(W2SError, match=message):
        V.keep_independent(votes, **options)


def test_scores_are_no_votes() -> None:
    with pytest.raises(W2SError, match="call binarize first"):
        V.keep_independent(np.full((4, 3), 0.5))
