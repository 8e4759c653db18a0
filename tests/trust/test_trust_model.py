"""P(label right): planted reliabilities are found, scores are honest, bad input is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.trust import MIN_ROWS, fit_trust, score_trust, trust_weights
from w2s_fast.trust.scores import _auroc


def planted(n: int, seed: int, width: int = 8) -> tuple[np.ndarray, ...]:
    """Return hidden states, probabilities, classes and whether labels are right.

    Column 0 separates the classes, column 1 the hard rows, where labels are right in 55 of 100.
    """
    rng = np.random.default_rng(seed)
    truth, hard = rng.integers(0, 2, n), rng.random(n) < 0.4
    hidden = rng.normal(size=(n, width))
    hidden[:, 0] += 1.5 * (2 * truth - 1)
    hidden[:, 1] += 2.0 * hard
    right = rng.random(n) < np.where(hard, 0.55, 0.95)
    label = np.where(right, truth, 1 - truth)
    top = 0.5 + 0.5 * rng.beta(3, 2, n)
    probs = np.where(np.eye(2, dtype=bool)[label], top[:, None], 1 - top[:, None])
    return hidden, probs, truth, right


def test_trust_of_new_rows_orders_and_calibrates() -> None:
    """Well above the constant, on rows that no fit has seen; the cross-fitted scores say so."""
    hidden, probs, truth, right = planted(4600, 0)
    model = fit_trust(hidden[:600], probs[:600], truth[:600])
    trust = model.predict(hidden[600:], probs[600:])
    constant = np.full(4000, right[:600].mean())
    new = score_trust(trust.astype(float), constant, right[600:], np.arange(4000))
    assert trust.dtype == np.float32 and trust.shape == (4000,)
    assert new.auroc > 0.93 and new.brier_gain > 0.08
    assert new.ece < 0.03
    assert model.scores.auroc_interval[0] > 0.85 and model.scores.brier_gain_interval[0] > 0.05
    low, high = model.scores.auroc_interval
    assert low < new.auroc + 0.02 and low < model.scores.auroc < high
    kept = trust_weights(trust, "filter", share=0.5) > 0
    assert right[600:][kept].mean() > right[600:].mean() + 0.15


def test_the_same_state_supports_one_class_and_contradicts_another() -> None:
    """Right means that the state agrees with the label: no weights shared by classes can say it."""
    rng = np.random.default_rng(1)
    hidden, label = rng.normal(size=(1500, 3)), rng.integers(0, 3, 1500)
    truth = hidden.argmax(1)
    probs = np.full((1500, 3), 0.2) + 0.4 * np.eye(3)[label]
    model = fit_trust(hidden[:1000], probs[:1000], truth[:1000])
    right = label == truth
    trust = model.predict(hidden[1000:], probs[1000:]).astype(float)
    scores = score_trust(trust, np.full(500, 1 / 3), right[1000:], np.arange(500))
    assert scores.auroc > 0.95


def test_right_may_be_given_itself() -> None:
    hidden, probs, truth, right = planted(300, 2)
    by_class, by_event = fit_trust(hidden, probs, truth), fit_trust(hidden, probs, right)
    assert np.array_equal(by_class.cross_fitted, by_event.cross_fitted)
    assert by_class.scores.n_right == right.sum() == 300 - by_class.scores.n_wrong


@pytest.mark.parametrize("seed", range(3))
def test_states_that_say_nothing_are_not_better_than_a_constant(seed: int) -> None:
    """Neither scores nor predictions claim what is not there."""
    rng = np.random.default_rng(seed)
    hidden, label = rng.normal(size=(400, 64)), rng.integers(0, 2, 400)
    probs = np.where(np.eye(2, dtype=bool)[label], 0.7, 0.3)
    right = rng.random(400) < 0.7
    model = fit_trust(hidden, probs, right, seed=seed)
    assert model.scores.auroc_interval[0] < 0.5 + 0.02
    assert model.scores.brier_gain_interval[0] < 0
    assert abs(model.predict(hidden, probs).mean() - 0.7) < 0.1


def test_rows_of_a_group_are_cross_fitted_together() -> None:
    """A copy of a row in another fold would give its label away."""
    rng = np.random.default_rng(3)
    hidden = np.repeat(rng.normal(size=(60, 40)), 10, axis=0)
    right = np.repeat(rng.random(60) < 0.6, 10)
    probs = np.tile([0.3, 0.7], (600, 1))
    groups = np.repeat([f"group {i}" for i in range(60)], 10)
    split, whole = (fit_trust(hidden, probs, right, groups=g).scores for g in (None, groups))
    assert split.auroc > 0.95
    assert whole.auroc < 0.75


def test_intervals_are_over_groups() -> None:
    """Ten copies of 60 rows say no more than 60 rows."""
    rng = np.random.default_rng(0)
    right, trust = rng.random(60) < 0.6, rng.random(60)
    trust[right] += 0.5
    ten, rows = (np.repeat(a, 10) for a in (trust / 1.5, right)), np.repeat(np.arange(60), 10)
    many, event = ten
    few = score_trust(trust / 1.5, np.full(60, 0.6), right, np.arange(60))
    grouped, loose = (
        score_trust(many, np.full(600, 0.6), event, g) for g in (rows, np.arange(600))
    )
    assert grouped.auroc == pytest.approx(few.auroc)
    for name in ("auroc_interval", "brier_gain_interval"):
        wide, same, narrow = (np.ptp(getattr(s, name)) for s in (grouped, few, loose))
        assert wide == pytest.approx(same, rel=0.1) and wide > 2 * narrow


def test_scale_shift_and_constant_columns_change_nothing() -> None:
    hidden, probs, truth, _ = planted(300, 4)
    moved = np.concatenate([1000 * hidden + 5, np.full((300, 2), 7.0)], 1)
    one, two = (fit_trust(x, probs, truth).predict(x, probs) for x in (hidden, moved))
    assert one == pytest.approx(two, abs=1e-3)


def test_the_seed_is_all_the_chance() -> None:
    hidden, probs, truth, _ = planted(300, 5)
    first, again = (fit_trust(hidden, probs, truth, seed=3) for _ in range(2))
    assert np.array_equal(first.cross_fitted, again.cross_fitted) and first.scores == again.scores
    other = fit_trust(hidden, probs, truth, seed=4)
    assert not np.array_equal(first.cross_fitted, other.cross_fitted)


def test_scores_by_hand() -> None:
    trust, right = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    scores = score_trust(trust, np.full(4, 0.5), right, np.arange(4))
    assert scores.auroc == pytest.approx(3.5 / 4)
    assert scores.brier == pytest.approx((0.01 + 0.36 + 0.16 + 0.01) / 4)
    assert scores.brier_gain == pytest.approx(0.25 - scores.brier)
    assert scores.n_right == scores.n_wrong == 2
    assert set(scores.as_dict()) >= {"auroc", "auroc_interval", "ece", "ece_noise"}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weighted_auroc_is_that_of_repeated_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trust, right = rng.integers(0, 5, 12) / 5, rng.random(12) < 0.5
    counts = rng.integers(0, 4, 12)
    many, event = np.repeat(trust, counts), np.repeat(right, counts)
    got = _auroc(np.unique(trust, return_inverse=True)[1], right, counts[None].astype(float))[0]
    wins = (many[event][:, None] > many[~event]) + 0.5 * (many[event][:, None] == many[~event])
    if wins.size:
        assert got == pytest.approx(wins.mean())
    else:
        assert np.isnan(got)


@pytest.mark.parametrize("n_wrong", [0, MIN_ROWS - 1, 300, 300 - MIN_ROWS + 1])
def test_too_few_right_or_wrong_rows_are_refused(n_wrong: int) -> None:
    hidden, probs, _, _ = planted(300, 6)
    right = np.arange(300) >= n_wrong
    with pytest.raises(W2SError, match=f"{n_wrong} are wrong; expected at least {MIN_ROWS} of"):
        fit_trust(hidden, probs, right)


def test_bad_input_is_named() -> None:
    hidden, probs, truth, _ = planted(100, 7)
    with pytest.raises(W2SError, match=r"features have shape \(100,\)"):
        fit_trust(hidden[:, 0], probs, truth)
    with pytest.raises(W2SError, match="probs has 99 rows; expected 100"):
        fit_trust(hidden, probs[:99], truth)
    broken = hidden.copy()
    broken[17, 3] = np.nan
    with pytest.raises(W2SError, match="row 17 is not finite"):
        fit_trust(broken, probs, truth)
    for labels in (truth[:99], truth.astype(float), truth + 5):
        with pytest.raises(W2SError, match="labels"):
            fit_trust(hidden, probs, labels)
    for name, value in {"l2": -1, "folds": 1}.items():
        with pytest.raises(W2SError, match=f"{name} is {value}"):
            fit_trust(hidden, probs, truth, **{name: value})
    with pytest.raises(W2SError, match="folds is 200; expected a whole number from 2 to 100"):
        fit_trust(hidden, probs, truth, folds=200)
    with pytest.raises(W2SError, match="groups have shape"):
        fit_trust(hidden, probs, truth, groups=[1, 2])
    with pytest.raises(W2SError, match="expected both kinds in several groups"):
        fit_trust(hidden, probs, np.arange(100) < 50, groups=np.arange(100) // 50, folds=2)
    model = fit_trust(hidden, probs, truth)
    with pytest.raises(W2SError, match="features have 3 columns; expected 8"):
        model.predict(hidden[:, :3], probs)
    with pytest.raises(W2SError, match="probs have 3 classes; expected 2"):
        model.predict(hidden, np.full((100, 3), 1 / 3))
