"""Labels without the evidence of a low-capacity model: by hand, and with a planted shortcut."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from w2s_fast.methods import Targets, make_method
from w2s_fast.methods._low_capacity import low_capacity_probs
from w2s_fast.methods.debias import Debias


def planted(n: int = 1500, seed: int = 0):
    """Gold, shortcut, hidden states in which the shortcut is the largest direction, and labels.

    The log-odds of the labels are the sum of what gold and shortcut say.
    """
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, n)
    shortcut = np.where(rng.random(n) < 0.7, gold, 1 - gold)
    x = rng.normal(size=(n, 12))
    x[:, 3] += 8 * (2 * shortcut - 1)
    x[:, 7] += 1.5 * (2 * gold - 1)
    odds = 1.0 * (2 * gold - 1) + 1.4 * (2 * shortcut - 1) + 0.3 * rng.normal(size=n)
    p = expit(odds)
    return gold, shortcut, x.astype(np.float32), np.stack([1 - p, p], 1).astype(np.float32)


def test_the_evidence_is_subtracted() -> None:
    _, _, x, w = planted()
    labels = Targets(w)
    known = low_capacity_probs(x, labels, rank=1, l2=1e-3, folds=5, seed=3)
    out = Debias(strength=0.7, rank=1).debiased(labels, x, seed=3)
    p1 = w[:, 1].mean(dtype=np.float64)
    expected = logit(w[:, 1].astype(float)) - 0.7 * (logit(known[:, 1].astype(float)) - logit(p1))
    assert logit(out.probs[:, 1].astype(float)) == pytest.approx(expected, abs=1e-4)
    assert out.probs.dtype == np.float32 and out.weight is None


def test_the_low_capacity_model_reads_the_largest_components_of_other_rows() -> None:
    """One component is the shortcut: two values, one for each side."""
    _, shortcut, x, w = planted()
    known = low_capacity_probs(x, Targets(w), rank=1, l2=1e-3, folds=2, seed=0)[:, 1]
    for side in (0, 1):
        mean = w[shortcut == side, 1].mean()
        assert known[shortcut == side].mean() == pytest.approx(mean, abs=0.02)
    # A row that only the label of the row itself could explain is not predicted by it.
    lone = np.zeros((40, 2), dtype=np.float32)
    lone[7] = 100.0
    labels = np.tile(np.float32([1, 0]), (40, 1))
    labels[7] = [0, 1]
    assert low_capacity_probs(lone, Targets(labels), rank=1, l2=1e-3, folds=5, seed=0)[7, 1] < 0.2
    weight = np.ones(len(w), dtype=np.float32)
    weight[::2] = 0
    far = x.copy()
    far[::2] += 50  # rows that do not count move neither components nor fit
    one = low_capacity_probs(x, Targets(w, weight), rank=2, l2=1e-3, folds=2, seed=0)
    two = low_capacity_probs(far, Targets(w, weight), rank=2, l2=1e-3, folds=2, seed=0)
    assert one[1::2] == pytest.approx(two[1::2], abs=1e-6) and not np.allclose(one, two)


def test_a_planted_shortcut_loses_its_say() -> None:
    gold, shortcut, x, w = planted()
    out = make_method("debias:strength=1,rank=1").debiased(Targets(w), x, seed=0)
    against = gold != shortcut
    before, after = (p.argmax(1) == gold for p in (w, out.probs))
    assert before[against].mean() < 0.2 and after[against].mean() > 0.9
    assert after.mean() > before.mean() + 0.15
    gentle = Debias(strength=0.2, rank=1).debiased(Targets(w), x, seed=0)
    lean = [abs(logit(p[:, 1].astype(float))[shortcut == 1].mean()) for p in (w, gentle.probs)]
    assert lean[1] < lean[0]


def test_strength_zero_and_states_that_say_nothing_change_nothing() -> None:
    _, _, x, w = planted(300)
    labels = Targets(w, np.r_[np.zeros(5), np.ones(295)].astype(np.float32))
    same = Debias(strength=0.0).debiased(labels, x, seed=0)
    assert same.probs == pytest.approx(w, abs=1e-5)
    assert same.weight is labels.weight
    noise = np.zeros_like(x)
    out = Debias(strength=1.0).debiased(Targets(w), noise, seed=0)
    assert np.abs(out.probs - w).max() < 0.02
    three = np.eye(3, dtype=np.float32)[np.arange(300) % 3]
    assert Debias().debiased(Targets(three), x, seed=0).probs.shape == (300, 3)
