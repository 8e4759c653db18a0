"""Labels drawn towards class prototypes: a known answer, noise, and classes without rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from w2s_fast.methods import make_method
from w2s_fast.methods._base import Targets
from w2s_fast.methods.prototype import Prototype, distances


def clusters(n: int = 400, noise: float = 0.2, dim: int = 20, seed: int = 0):
    """Gold, hidden states of two clusters, and labels of which a share is flipped."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, n)
    x = rng.normal(size=(n, dim)) + 2.5 * (2 * gold - 1)[:, None] * np.eye(dim)[0]
    wrong = rng.random(n) < noise
    weak = np.where(wrong, 1 - gold, gold)
    return gold, (100 + x).astype(np.float32), np.eye(2, dtype=np.float32)[weak]


def test_distances_by_hand() -> None:
    x = np.array([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [10.0, 4.0], [99.0, 9.0]])
    q = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], dtype=float)
    used = np.array([True, True, True, True, False])
    # Prototypes (1, 0) and (10, 2); own distances 1, 1, 4, 4.
    expected = np.array([[1, 104], [1, 68], [81, 4], [97, 4], [98**2 + 81, 89**2 + 49]]) / 2.5
    assert distances(x, q, used) == pytest.approx(expected)


def test_scores_fit_the_weak_labels_best() -> None:
    """The width of the scores is the one with the least cross-entropy to the labels."""
    _, x, w = clusters()
    out = Prototype(mix=1.0).refine(Targets(w), x, seed=0)
    d = distances(x.astype(float), w.astype(float), np.ones(len(w), bool))
    grid = [softmax(-b * d, axis=1) for b in np.linspace(0, 10, 2001)]
    best = min(-(w * np.log(p)).sum() for p in grid)
    assert -(w * np.log(out.probs.astype(float))).sum() == pytest.approx(best, rel=1e-4)


def test_flipped_labels_turn_back() -> None:
    gold, x, w = clusters()
    weak = Targets(w)
    refined = make_method("prototype:mix=0.8").refine(weak, x, seed=0)
    right = [(t.probs.argmax(1) == gold).mean() for t in (weak, refined)]
    assert right[0] < 0.85 and right[1] > 0.97
    again = Prototype(mix=0.8, rounds=3).refine(weak, x, seed=0)
    assert (again.probs.argmax(1) == gold).mean() >= right[1] - 0.01
    assert not np.array_equal(again.probs, refined.probs)
    assert refined.probs.dtype == np.float32 and np.allclose(refined.probs.sum(1), 1, atol=1e-6)


def test_states_without_a_class_change_nothing_but_confidence() -> None:
    """Prototypes that say nothing give scores near 1/K."""
    rng = np.random.default_rng(1)
    _, _, w = clusters()
    noise = rng.normal(size=(len(w), 3)).astype(np.float32)
    scores = Prototype(mix=1.0).refine(Targets(w), noise, seed=0).probs
    assert np.abs(scores - 0.5).mean() < 0.1
    half = Prototype(mix=0.4).refine(Targets(w), noise, seed=0)
    assert np.array_equal(half.probs.argmax(1), w.argmax(1))
    kept = Prototype(mix=0.0).refine(Targets(w), noise, seed=0)
    assert kept.probs == pytest.approx(w)


def test_rows_of_weight_0_move_nothing_and_get_labels() -> None:
    _, x, w = clusters(40)
    weight = np.ones(40, np.float32)
    weight[:10] = 0
    far = x.copy()
    far[:10] += 1e3
    near, moved = (Prototype().refine(Targets(w, weight), states, seed=0) for states in (x, far))
    assert np.array_equal(near.probs[10:], moved.probs[10:])
    assert np.isfinite(moved.probs).all() and np.array_equal(moved.weight, weight)


def test_a_class_without_labels_gets_no_score() -> None:
    _, x, w = clusters(40)
    three = np.concatenate([w, np.zeros((40, 1), np.float32)], axis=1)
    # Around the origin, where the mean of no rows would be.
    out = Prototype(mix=1.0, rounds=2).refine(Targets(three), x - 100, seed=0)
    assert (out.probs[:, 2] == 0).all() and np.isfinite(out.probs).all()


def test_equal_states_leave_the_balance() -> None:
    _, _, w = clusters(40)
    out = Prototype(mix=1.0).refine(Targets(w), np.ones((40, 4), np.float32), seed=0)
    assert out.probs == pytest.approx(np.full((40, 2), 0.5))
