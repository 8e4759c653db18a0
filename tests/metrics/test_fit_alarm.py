"""The alarm: at the planted evaluation, and never for labels without errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast import metrics
from w2s_fast.errors import W2SError


def trajectory(agreement: list[float], n: int = 1000) -> np.ndarray:
    """Return (K, n) bool whose rows have these shares; labels once agreed with stay so."""
    return np.arange(n) < np.round(np.array(agreement) * n)[:, None]


def test_it_rings_when_agreement_rises_above_the_accuracy_of_the_labels() -> None:
    learns, fits = [0.5, 0.7, 0.8, 0.805], [0.83, 0.85, 0.9, 0.95]
    assert metrics.fit_alarm(trajectory(learns + fits), 0.8, 2000) == 4
    assert metrics.fit_alarm(trajectory(learns + [0.806] * 4), 0.8, 2000) is None
    # labels of an accuracy that the student has not reached: it may still be learning
    assert metrics.fit_alarm(trajectory(learns + fits), 0.96, 10_000) is None
    # an accuracy that is known less well is reached earlier, at .7
    assert metrics.fit_alarm(trajectory(learns + fits), 0.8, 60) == 2


def test_a_rise_must_last_and_exceed_its_error() -> None:
    plateau = [0.8] * 4
    assert metrics.fit_alarm(trajectory([*plateau, 0.9, 0.8, 0.8]), 0.8, 2000) is None
    assert metrics.fit_alarm(trajectory([*plateau, 0.9]), 0.8, 2000) is None
    assert metrics.fit_alarm(trajectory([*plateau, 0.9, 0.9]), 0.8, 2000) == 4
    assert metrics.fit_alarm(trajectory([*plateau, 0.809, 0.809]), 0.8, 2000) is None
    # a rise of .05 by new agreement alone, and by many changes in both directions
    before, gained, moved = np.arange(300) < 240, np.arange(300) < 255, np.arange(300) >= 45
    assert metrics.fit_alarm(np.stack([before, gained, gained]), 0.8, 2000) == 1
    assert metrics.fit_alarm(np.stack([before, moved, moved]), 0.8, 2000) is None


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=8))
def test_labels_without_errors_never_raise_it(rows: list[list[bool]]) -> None:
    assert metrics.fit_alarm(np.array(rows), 1.0, 500) is None


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(W2SError, match=r"agrees has shape \(3,\)"):
        metrics.fit_alarm(np.ones(3, bool), 0.8, 10)
    with pytest.raises(W2SError, match="dtype float64"):
        metrics.fit_alarm(np.ones((3, 3)), 0.8, 10)
    with pytest.raises(W2SError, match=r"weak_accuracy is 1.2 of 10 texts"):
        metrics.fit_alarm(np.ones((3, 3), bool), 1.2, 10)
    with pytest.raises(W2SError, match="of 0 texts"):
        metrics.fit_alarm(np.ones((3, 3), bool), 0.8, 0)
