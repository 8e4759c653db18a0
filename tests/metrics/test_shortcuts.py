"""Scores of rows that lean on a shortcut: by hand, and against groups that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.shortcut_latents import draw
from scipy.stats import norm

from w2s_fast.errors import W2SError
from w2s_fast.methods import Targets, low_capacity_probs
from w2s_fast.metrics import auroc, shared_errors, shortcut_scores


def two(*p1: float) -> np.ndarray:
    p = np.array(p1)
    return np.stack([1 - p, p], 1)


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    value = auroc(np.stack([1 - scores, scores], 1), positive.astype(int))
    assert value is not None
    return value


def test_scores_by_hand() -> None:
    scores = shortcut_scores(two(0.9, 0.2), two(0.6, 0.3), two(0.8, 0.7), two(0.1, 0.5))
    assert scores.lean == pytest.approx([0.8 * 0.6, 0.3 * 0.7])
    assert scores.against == pytest.approx([0.2, 0.7])
    assert scores.misled == pytest.approx([0.48 * 0.9, 0.21 * 0.5])
    assert shortcut_scores(two(0.9), two(0.6), two(0.8)).misled is None


def test_shared_errors_by_hand() -> None:
    """Class 0: weak errs on 2 of 4, student on 1 of 4, together on 1. Class 1: no errors."""
    gold = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    weak = two(0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9)
    student = two(0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9)
    shared = shared_errors(weak, student, gold)
    assert (shared.observed, shared.expected) == (1 / 8, pytest.approx(0.5 * 0.5 * 0.25))
    assert shared.excess == pytest.approx(1 / 16)
    # Three classes: both err on every item, but with the same class on half of them.
    three = np.eye(3)
    a, b = three[[1, 1, 2, 2]], three[[1, 2, 1, 2]]
    shared = shared_errors(a, b, np.zeros(4, int))
    assert shared.observed == 0.5 and shared.expected == pytest.approx(0.5)


def test_independent_errors_have_no_excess() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, 20000)
    one, other = (
        np.eye(3)[np.where(rng.random(20000) < p, rng.integers(0, 3, 20000), gold)]
        for p in (0.3, 0.5)
    )
    assert abs(shared_errors(one, other, gold).excess) < 0.01
    copied = shared_errors(one, one, gold)
    assert copied.excess > 0.1


def network(x: np.ndarray, labels: np.ndarray, steps: int) -> np.ndarray:
    """Probabilities of a small network trained on soft labels; all rows."""
    torch.manual_seed(0)
    data, target = torch.from_numpy(x / x.std()), torch.from_numpy(labels).float()
    net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 32), torch.nn.ReLU(),
                              torch.nn.Linear(32, 2))  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        loss = -(target * net(data).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net(data).softmax(1).detach().double().numpy()


def test_a_planted_shortcut_is_found_without_its_groups() -> None:
    """The weak model leans on the available latent; a third opinion knows a little of the core."""
    rows = draw(3000, 0)
    weak = network(rows.x, np.eye(2)[rows.gold], steps=15)
    student = network(rows.x, weak, steps=60)
    conflicts = ~rows.agrees
    right = weak.argmax(1) == rows.gold
    assert right[conflicts].mean() < 0.6 < 0.9 < right[~conflicts].mean()
    low = low_capacity_probs(rows.x, Targets(weak.astype(np.float32)), rank=1, l2=1e-3, folds=5,
                             seed=0)  # fmt: skip
    noisy = rows.core + 1.5 * np.random.default_rng(1).normal(size=3000)
    other = two(*norm.cdf(noisy))
    scores = shortcut_scores(weak, student, low, other)
    follows = (rows.shortcut > 0) == (weak.argmax(1) == 1)
    assert area(scores.lean, follows) > 0.9, "labels that the shortcut would give"
    # Groups: where labels are mostly right, what contradicts the shortcut is in conflict.
    assert area(scores.against, conflicts) > 0.7
    misled = conflicts & ~right
    assert scores.misled is not None
    assert area(scores.misled, misled) > max(0.8, area(scores.lean, misled) + 0.1)
    assert shared_errors(weak, student, rows.gold).excess > 0.05


def test_without_a_shortcut_little_is_found() -> None:
    rows = draw(3000, 0, predictivity=(0.95, 0.5))
    labels = np.eye(2, dtype=np.float32)[rows.gold]
    low = low_capacity_probs(rows.x, Targets(labels), rank=1, l2=1e-3, folds=5, seed=0)
    scores = shortcut_scores(labels, labels, low)
    assert np.abs(scores.against - 0.5).max() < 0.15, "the available latent says nothing"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((two(0.5), two(0.5, 0.5), two(0.5)), r"student has shape \(2, 2\), weak \(1, 2\)"),
        ((two(0.5), two(1.5), two(0.5)), "student"),
        ((two(0.5), two(0.5), two(0.5), np.full((1, 3), 1 / 3)), r"other has shape \(1, 3\)"),
    ],
)
def test_arrays_that_do_not_fit(arguments: tuple[np.ndarray, ...], problem: str) -> None:
    with pytest.raises(W2SError, match=problem):
        shortcut_scores(*arguments)
    with pytest.raises(W2SError, match="student has shape"):
        shared_errors(two(0.5), two(0.5, 0.5), np.array([0]))
