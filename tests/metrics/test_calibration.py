"""Calibration errors by hand, and calibrators that recover what was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast import metrics
from w2s_fast.errors import W2SError


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def planted(
    n: int, n_classes: int, scale: np.ndarray | float, shift: np.ndarray | float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities z and labels drawn from softmax(scale z + shift)."""
    rng = np.random.default_rng(seed)
    z = np.log(softmax(2 * rng.normal(size=(n, n_classes))))
    chances = softmax(scale * z + shift).cumsum(1)
    return z, (rng.random((n, 1)) > chances[:, :-1]).sum(1)


def test_scores_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 0])
    # two bins: confidences .6 and .7 are right once of twice, .8 and .9 too
    assert metrics.ece(probs, labels, 4) == pytest.approx((abs(1 - 1.3) + abs(1 - 1.7)) / 4)
    assert metrics.ece(probs, labels, 1) == pytest.approx(abs(2 - 3.0) / 4)
    assert metrics.nll(probs, labels) == pytest.approx(-np.log([0.9, 0.2, 0.7, 0.4]).mean())
    assert metrics.brier(probs, labels) == pytest.approx(2 * (0.01 + 0.64 + 0.09 + 0.36) / 4)
    third = np.full((2, 3), 1 / 3)
    for rounded in (third, third * 1.005):  # rows sum to 1 only nearly in fp16
        assert metrics.brier(rounded, np.array([0, 2])) == pytest.approx(4 / 9 + 2 / 9)


def test_the_curve_adds_up_to_the_ece() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0, 1])
    curve = metrics.calibration_curve(probs, labels, 4)  # of four bins two have items
    assert curve.n.tolist() == [3, 2]
    assert curve.confidence == pytest.approx([(0.7 + 0.6 + 0.55) / 3, 0.85])
    assert curve.accuracy == pytest.approx([2 / 3, 0.5])
    z, drawn = planted(300, 4, 2.0, 0.3)
    whole = metrics.calibration_curve(np.exp(z), drawn)
    gaps = np.abs(whole.accuracy - whole.confidence)
    assert (whole.n * gaps).sum() / 300 == pytest.approx(metrics.ece(np.exp(z), drawn))
    with pytest.raises(W2SError, match="n_bins"):
        metrics.calibration_curve(probs, labels, 0)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    probs = np.array([[1.0, 0.0], [0.99, 0.01]])
    assert metrics.ece(probs, np.array([1, 0])) == pytest.approx(0.99 / 2)


def test_noise_is_the_mean_ece_of_calibrated_probabilities() -> None:
    z, _ = planted(400, 3, 1.0, 0.0)
    probs = np.exp(z)
    rng = np.random.default_rng(1)
    eces = [
        metrics.ece(probs, (rng.random((400, 1)) > probs.cumsum(1)[:, :-1]).sum(1))
        for _ in range(300)
    ]
    assert metrics.ece_noise(probs) == pytest.approx(np.mean(eces), rel=0.06)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 5.0])
def test_a_planted_temperature_is_recovered(n_classes: int, temperature: float) -> None:
    z, labels = planted(20_000, n_classes, 1 / temperature, 0.0)
    for fit in (
        metrics.fit_temperature(np.exp(z), labels),
        metrics.fit_temperature(3 * z, labels, logits=True),
    ):
        assert fit.temperature is not None
        factor = 1 if fit.temperature < 2.5 * temperature else 3
        assert fit.temperature == pytest.approx(factor * temperature, rel=0.06)
    calibrated = metrics.fit_temperature(np.exp(z), labels)(np.exp(z))
    assert metrics.ece(calibrated, labels) < 2 * metrics.ece_noise(calibrated)
    if temperature != 1:
        assert metrics.ece(np.exp(z), labels) > 5 * metrics.ece_noise(np.exp(z))
        assert metrics.nll(calibrated, labels) < metrics.nll(np.exp(z), labels) - 0.01


def test_planted_platt_coefficients_are_recovered() -> None:
    z, labels = planted(40_000, 2, 0.5, np.array([0.0, 0.8]))
    fit = metrics.fit_platt(np.exp(z), labels)
    assert fit.scale[0] == fit.scale[1] == pytest.approx(0.5, rel=0.05)
    assert fit.shift[0] == 0 and fit.shift[1] == pytest.approx(0.8, abs=0.05)
    assert fit.temperature is None
    inverted = metrics.fit_platt(np.exp(z), 1 - labels)
    assert inverted.scale[0] == pytest.approx(-0.5, rel=0.05)


def test_planted_vector_scaling_is_recovered() -> None:
    scale, shift = np.array([0.5, 1.0, 2.0]), np.array([0.0, -1.0, 1.0])
    z, labels = planted(60_000, 3, scale, shift)
    fit = metrics.fit_platt(np.exp(z), labels)
    assert fit.scale == pytest.approx(scale, rel=0.08)
    assert fit.shift == pytest.approx(shift, abs=0.1)


def test_platt_minimises_cross_entropy_with_his_targets() -> None:
    """The optimum found by another optimizer, from the formula of Platt 1999, Eq. 5."""
    from scipy.optimize import minimize

    z, labels = planted(60, 2, 0.7, np.array([0.0, 0.5]))
    odds = z[:, 1] - z[:, 0]
    n1, n0 = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))

    def loss(ab: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(ab[0] * odds + ab[1])))
        return -np.mean(target * np.log(p) + (1 - target) * np.log1p(-p))

    expected = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7}).x
    fit = metrics.fit_platt(np.exp(z), labels)
    assert (fit.scale[1], fit.shift[1]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["temperature", "platt"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_separable_and_saturated_data_have_a_finite_fit(name: str, n_classes: int) -> None:
    labels = np.arange(40) % n_classes
    soft = np.full((40, n_classes), 0.4 / (n_classes - 1))
    np.put_along_axis(soft, labels[:, None], 0.6, 1)
    hard = np.eye(n_classes)[labels]
    wrong = hard.copy()
    wrong[:8] = hard[np.arange(8) + 1]  # a fifth of the hard labels is wrong
    for probs in (soft, hard, wrong, hard.astype(np.float16), wrong.astype(np.float32)):
        calibrated = metrics.CALIBRATORS[name](probs, labels)(probs)
        assert np.isfinite(calibrated).all() and calibrated.dtype == np.float32
        assert 0.5 < calibrated.max() < 1
        assert (calibrated.argmax(1) == probs.argmax(1)).all()
    assert metrics.CALIBRATORS[name](wrong, labels)(wrong).max(1).mean() == pytest.approx(
        0.8,
        abs=0.07,  # 32 of 40 are right
    )


def test_fp16_gives_the_fit_of_its_values() -> None:
    z, labels = planted(3000, 3, 0.5, 0.0)
    half = np.exp(z).astype(np.float16)
    for fit in metrics.CALIBRATORS.values():
        expected = fit(half.astype(np.float64), labels)
        assert fit(half, labels).scale == pytest.approx(expected.scale, rel=0.02)


def test_a_model_worse_than_chance_becomes_uniform() -> None:
    z, labels = planted(2000, 2, -1.0, 0.0)
    calibrated = metrics.fit_temperature(np.exp(z), labels)(np.exp(z))
    assert np.abs(calibrated - 0.5).max() < 0.01


def test_equal_predictions_keep_their_temperature() -> None:
    uniform = np.full((6, 2), 0.5)
    assert metrics.fit_temperature(uniform, np.array([0, 1] * 3)).temperature == 1


@given(
    st.integers(2, 5).flatmap(
        lambda c: st.tuples(
            st.lists(st.lists(st.floats(-60, 60), min_size=c, max_size=c), min_size=c, max_size=12),
            st.randoms(use_true_random=False),
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_a_temperature_keeps_the_order_of_the_classes(case: tuple) -> None:
    rows, random = case
    logits = np.array(rows)
    n, n_classes = logits.shape
    labels = np.array([i % n_classes for i in range(n)])
    random.shuffle(labels)
    probs = softmax(logits)
    calibrated = metrics.fit_temperature(probs, labels)(probs)
    assert np.allclose(calibrated.sum(1), 1, atol=1e-5)
    order = np.argsort(probs, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(calibrated, order, 1), axis=1) >= 0).all()
    assert metrics.nll(calibrated, labels) <= metrics.nll(probs, labels) + math.log(n_classes)


GOOD = np.array([[0.7, 0.3], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (GOOD[:, 1], [0, 1], r"probs has shape \(2,\); expected \(items, classes\)"),
        (GOOD[:0], [], r"shape \(0, 2\).*at least one item"),
        (GOOD * 2, [0, 1], r"row 0 is \[1.4, 0.6\]; expected probabilities that sum to 1"),
        (GOOD * 100, [0, 1], r"row 0 is \[70.0, 30.0\]; .* divide percentages by 100"),
        (GOOD - 0.5, [0, 1], "row 0 is .*expected probabilities"),
        (np.where(GOOD > 0.75, np.nan, GOOD), [0, 1], "row 1 is .*nan"),
        (GOOD, [0, 2], "labels: row 1 is 2; expected a class from 0 to 1"),
        (GOOD, [0, -1], "labels: row 1 is -1"),
        (GOOD, [0], r"labels have shape \(1,\).*expected 2 integers"),
        (GOOD, [0.0, 1.0], "dtype float64; expected 2 integers"),
    ],
)
def test_what_is_no_probability_or_class_is_named(
    probs: np.ndarray, labels: list, message: str
) -> None:
    for function in (metrics.ece, metrics.nll, metrics.brier, *metrics.CALIBRATORS.values()):
        with pytest.raises(W2SError, match=message):
            function(probs, np.array(labels))


def test_absent_classes_bins_and_widths_are_named() -> None:
    three = np.full((4, 3), 1 / 3)
    with pytest.raises(
        W2SError, match="none of 4 items is of class 2; expected every class.*temperature"
    ):
        metrics.fit_platt(three, np.array([0, 1, 0, 1]))
    metrics.fit_temperature(three, np.array([0, 1, 0, 1]))
    with pytest.raises(
        W2SError, match="none of 4 items is of class 0, 2; expected two classes or more"
    ):
        metrics.fit_temperature(three, np.array([1] * 4))
    for fit in metrics.CALIBRATORS.values():
        with pytest.raises(W2SError, match="none of 2 items is of class 1; expected every class"):
            fit(GOOD, np.array([0, 0]))
    with pytest.raises(W2SError, match="n_bins is 0"):
        metrics.ece(GOOD, np.array([0, 1]), 0)
    with pytest.raises(W2SError, match="probs have 3 classes; expected 2"):
        metrics.fit_temperature(GOOD, np.array([0, 1]))(three)
    with pytest.raises(W2SError, match="logits have shape"):
        metrics.fit_temperature(np.array([[np.inf, 0.0]] * 2), np.array([0, 1]), logits=True)
