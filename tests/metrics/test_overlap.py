"""Overlap density: planted patterns are found, and a change point is the best split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast import metrics
from w2s_fast.errors import W2SError


def planted(
    n_easy: int, n_hard: int, n_both: int, n_classes: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weak labels, hidden states, and the pattern of each item: 0 easy, 1 hard, 2 both."""
    rng = np.random.default_rng(0)
    pattern = rng.permutation(np.repeat([0, 1, 2], [n_easy, n_hard, n_both]))
    top = np.where(pattern == 1, 1 / n_classes + 0.1, 0.95) + rng.uniform(-0.04, 0.04, len(pattern))
    weak = np.repeat((1 - top)[:, None] / (n_classes - 1), n_classes, 1)
    np.put_along_axis(weak, rng.integers(n_classes, size=(len(pattern), 1)), top[:, None], 1)
    states = 0.02 * rng.normal(size=(len(pattern), 40))
    states[pattern != 1, 0] += 1.0
    hard = np.flatnonzero(
        pattern != 0
    )  # one of 20 hard patterns, of either sign beside an easy one
    sign = np.where(pattern[hard] == 1, 1.0, rng.choice([-1.0, 1.0], len(hard)))
    states[hard, rng.integers(1, 21, len(hard))] += sign
    return weak, states * rng.uniform(0.5, 2, (len(pattern), 1)), pattern


@pytest.mark.parametrize("n_classes", [2, 5])
def test_planted_patterns_are_found(n_classes: int) -> None:
    weak, states, pattern = planted(300, 200, 100, n_classes)
    found = metrics.find_overlap(weak, states)
    assert (found.hard == (pattern == 1)).all()
    assert (found.overlap == (pattern == 2)).all()
    assert found.density == pytest.approx(100 / 600)
    assert 0.7 < found.confidence_cut < 0.95 and 0.3 < found.similarity_cut < 0.9


def test_blocks_give_what_one_product_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    weak, states, _ = planted(300, 200, 100)
    whole = metrics.find_overlap(weak, states)
    monkeypatch.setattr("w2s_fast.metrics.overlap._BLOCK_BYTES", 10_000)
    blocks = metrics.find_overlap(weak, states)
    assert (whole.overlap == blocks.overlap).all()
    assert whole.similarity_cut == pytest.approx(blocks.similarity_cut, abs=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=25).filter(lambda v: len(set(v)) > 1))
def test_a_change_point_is_the_best_split(values: list[float]) -> None:
    def deviations(cut: float) -> float:
        parts = [v[v < cut], v[v >= cut]]
        return sum(((p - p.mean()) ** 2).sum() for p in parts)

    v = np.array(values)
    cut = metrics.change_point(v)
    assert cut in values and (v < cut).any()
    best = min(deviations(c) for c in sorted(set(values))[1:])
    assert deviations(cut) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_what_has_no_change_point_is_named() -> None:
    weak, states, _ = planted(20, 20, 20)
    with pytest.raises(
        W2SError, match=r"confidences of the weak labels are all equal \(60 items\)"
    ):
        metrics.find_overlap(np.eye(2)[np.arange(60) % 2], states)
    with pytest.raises(W2SError, match="similarities to items of low confidence are all equal"):
        metrics.find_overlap(weak, np.ones((60, 40)))
    with pytest.raises(W2SError, match=r"states have shape \(59, 40\) for 60 weak labels"):
        metrics.find_overlap(weak, states[:59])
    with pytest.raises(W2SError, match="finite"):
        metrics.find_overlap(weak, states * np.nan)
    with pytest.raises(W2SError, match="0 items"):
        metrics.change_point(np.zeros(0))
