"""Mutual predictability and the search for the most coherent labelling."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast.methods import Targets
from w2s_fast.methods._coherence import Coherence, hat_factor
from w2s_fast.methods.consistent import Consistent


def _soft(hard: np.ndarray, classes: int, top: float = 1.0) -> np.ndarray:
    rest = (1 - top) / (classes - 1)
    return np.where(np.eye(classes, dtype=bool)[hard], top, rest).astype(np.float32)


def _accuracy(out: Targets, gold: np.ndarray) -> float:
    return float((out.probs.argmax(1) == gold).mean())


def _ridge_without(x: np.ndarray, onehot: np.ndarray, i: int, ridge: float) -> np.ndarray:
    """Prediction (K,) for row i of ridge regression with a free intercept on all the others."""
    n, d = x.shape
    penalty = ridge * np.square(x - x.mean(0)).sum() / d
    a = np.hstack([np.ones((n, 1)), x])
    rest = np.arange(n) != i
    p = penalty * np.eye(d + 1)
    p[0, 0] = 0.0
    return a[i] @ np.linalg.solve(a[rest].T @ a[rest] + p, a[rest].T @ onehot[rest])


@pytest.mark.parametrize(("n", "d", "classes"), [(30, 4, 2), (12, 20, 3)])
def test_leave_one_out_is_a_regression_without_the_row(n: int, d: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    x = 3 + rng.normal(size=(n, d)) + 3 * np.eye(d)[labels]
    labels[:2] = labels[1::-1]  # two errors
    labelling = Coherence(hat_factor(x, 0.5), labels, classes)
    onehot = np.eye(classes)[labels]
    scores = np.stack([_ridge_without(x, onehot, i, 0.5) for i in range(n)])

    def value(tau: float) -> float:
        z = scores / tau
        return float((z[np.arange(n), labels] - np.log(np.exp(z).sum(1))).sum())

    assert labelling.value == pytest.approx(value(labelling.temperature), abs=1e-4)
    # The temperature is the likeliest.
    assert labelling.value >= max(value(labelling.temperature * f) for f in (0.8, 1.25)) - 1e-4


@pytest.mark.parametrize("classes", [2, 3])
def test_updates_equal_a_new_start(classes: int) -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(40, 5)), rng.integers(0, classes, 40)
    labelling = Coherence(hat_factor(x, 1.0), labels, classes)
    for row in rng.integers(0, 40, 25):
        label = int((labelling.labels[row] + 1) % classes)
        gain, z = labelling.propose(row, label, labelling.columns(np.array([row]))[0])
        labelling.relabel(row, label, gain, z)
    value, tau = labelling.value, labelling.temperature
    fresh = Coherence(hat_factor(x, 1.0), labelling.labels, classes)
    assert np.array_equal(fresh.counts, labelling.counts)
    z = fresh._z * fresh.temperature / tau
    top = z.max(0)
    own = z[labelling.labels, np.arange(40)]
    log_p = own - top - np.log(np.exp(z - top).sum(0))
    assert value == pytest.approx(float(log_p.sum()), abs=1e-4)
    assert fresh.value >= value - 1e-4  # with its own temperature


def _clusters(n: int, classes: int, flip: float, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, n)
    x = 3 * np.eye(10)[gold] + rng.normal(size=(n, 10)) * 0.7
    hard = np.where(rng.random(n) < flip, (gold + rng.integers(1, classes, n)) % classes, gold)
    return gold, x.astype(np.float32), hard


@pytest.mark.parametrize(("classes", "flip"), [(2, 0.3), (3, 0.35)])
def test_search_repairs_random_errors(classes: int, flip: float) -> None:
    gold, x, hard = _clusters(300, classes, flip, seed=0)
    weak = Targets(_soft(hard, classes, 0.8))
    out = Consistent().search(weak, x, seed=0)
    assert _accuracy(weak, gold) < 0.72 and _accuracy(out, gold) > 0.97
    assert np.array_equal(np.sort(np.unique(out.probs)), [0, 1])
    assert np.array_equal(Consistent().search(weak, x, seed=0).probs, out.probs)


def test_search_from_the_students_answers() -> None:
    gold, x, hard = _clusters(300, 2, 0.3, seed=1)
    biased = _soft(hard, 2, 0.7) * np.array([5.0, 1.0])  # nearly all answers are class 0
    prior = Targets((biased / biased.sum(1, keepdims=True)).astype(np.float32))
    assert prior.probs.argmax(1).sum() == 0
    weak = Targets(_soft(np.arange(300) % 2, 2))  # balanced, and of no use otherwise
    out = Consistent(start="answers").search(weak, x, seed=0, prior=prior)
    assert _accuracy(out, gold) > 0.97


def test_one_class_for_all_is_out_of_bounds() -> None:
    """All rows alike is the most coherent labelling there is; class shares rule it out."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    weak = Targets(_soft(rng.integers(0, 2, 200), 2))
    share = weak.probs[:, 1].mean()
    alike = Coherence(hat_factor(x, 10.0), np.zeros(200, dtype=np.int64), 2)
    for slack in (0.0, 0.1):
        out = Consistent(slack=slack, sweeps=8).search(weak, x, seed=0)
        assert abs(out.probs[:, 1].mean() - share) <= slack + 1 / 200
        labelling = Coherence(hat_factor(x, 10.0), out.probs.argmax(1), 2)
        assert labelling.value < alike.value
    free = Consistent(slack=1.0, sweeps=20).search(weak, x, seed=0)
    assert abs(free.probs[:, 1].mean() - share) > 0.1


def test_rows_that_do_not_count_are_left_alone() -> None:
    gold, x, hard = _clusters(120, 2, 0.25, seed=3)
    weight = (np.arange(120) % 3 != 0).astype(np.float32)
    weak = Targets(_soft(hard, 2, 0.8), weight)
    out = Consistent().search(weak, x, seed=0)
    assert np.array_equal(out.probs[weight == 0], weak.probs[weight == 0])
    part = Targets(weak.probs[weight > 0])
    alone = Consistent().search(part, x[weight > 0], seed=0)
    assert np.array_equal(out.probs[weight > 0], alone.probs)
