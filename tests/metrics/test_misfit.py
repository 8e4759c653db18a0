"""Misfit by hand and by scipy, and the theorem it comes from on a convex class."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast import metrics
from w2s_fast.errors import W2SError


def test_by_hand() -> None:
    student, weak = np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.5, 0.5], [0.7, 0.3]])
    m = metrics.misfit(student, weak)
    assert m.squared == pytest.approx((2 * 0.16 + 2 * 0.09) / 2)
    forward = 0.9 * np.log(1.8) + 0.1 * np.log(0.2) + 0.4 * np.log(4 / 7) + 0.6 * np.log(2)
    backward = 0.5 * np.log(5 / 9) + 0.5 * np.log(5) + 0.7 * np.log(7 / 4) + 0.3 * np.log(0.5)
    assert m.kl_student_weak == pytest.approx(forward / 2)
    assert m.kl_weak_student == pytest.approx(backward / 2)
    assert m.disagreement == 0.5


def test_kl_is_that_of_scipy_and_zeros_are_finite() -> None:
    from scipy.stats import entropy

    rng = np.random.default_rng(0)
    student, weak = rng.dirichlet(np.ones(5), 50), rng.dirichlet(np.ones(5), 50)
    m = metrics.misfit(student, weak)
    assert m.kl_student_weak == pytest.approx(entropy(student, weak, axis=1).mean())
    assert m.kl_weak_student == pytest.approx(entropy(weak, student, axis=1).mean())
    opposite = metrics.misfit(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1])
    assert 100 < opposite.kl_student_weak < 110  # the smallest fp32 number is exp(-103)
    assert opposite.squared == 2 and opposite.disagreement == 1


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 20))
def test_it_is_zero_for_equal_predictions_and_positive_else(seed: int, c: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.full(c, 0.3), n), rng.dirichlet(np.full(c, 0.3), n)
    assert astuple(metrics.misfit(a, a)) == (0, 0, 0, 0)
    m = metrics.misfit(a, b)
    assert min(m.squared, m.kl_student_weak, m.kl_weak_student) > 0
    assert 0 <= m.squared <= 2 and 0 <= m.disagreement <= 1
    assert m.squared == pytest.approx(metrics.misfit(b, a).squared)
    assert m.kl_student_weak == pytest.approx(metrics.misfit(b, a).kl_weak_student)


def test_it_bounds_the_gain_of_the_nearest_model_of_a_convex_class() -> None:
    """The student is the mixture of five models that is nearest to the weak model."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(1)
    n = 4000
    experts = rng.dirichlet(np.ones(2), (5, n))
    truth = np.tensordot(rng.dirichlet(np.ones(5)), experts, 1)
    weak = 0.7 * truth + 0.3 * rng.dirichlet(np.ones(2), n)

    def squared(weights: np.ndarray) -> float:
        w = np.exp(weights - weights.max())
        return metrics.misfit(np.tensordot(w / w.sum(), experts, 1), weak).squared

    fit = minimize(squared, np.zeros(5), method="L-BFGS-B").x
    student = np.tensordot(np.exp(fit - fit.max()) / np.exp(fit - fit.max()).sum(), experts, 1)
    m = metrics.misfit(student, weak).squared
    # an expected Brier score is the squared distance to the true probabilities, and a constant
    gain = metrics.misfit(weak, truth).squared - metrics.misfit(student, truth).squared
    assert 0.01 < m <= gain + 1e-4


def test_other_shapes_are_named() -> None:
    two, three = np.full((4, 2), 0.5), np.full((4, 3), 1 / 3)
    with pytest.raises(W2SError, match=r"student has shape \(4, 2\), weak \(4, 3\)"):
        metrics.misfit(two, three)
    with pytest.raises(W2SError, match="weak: row 0 is"):
        metrics.misfit(two, two + 1)
