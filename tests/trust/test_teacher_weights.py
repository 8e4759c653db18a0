"""Learned weights of teachers: order, symmetry, and better labels than the mean."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.trust import teacher_weights


def planted(
    accuracies: tuple[float, ...], seed: int, n: int = 600
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hidden states, labels of teachers who err independently, and true classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    hidden = rng.normal(size=(n, 16)).astype(np.float32)
    hidden[:, 0] += 2 * (2 * truth - 1)
    right = rng.random((len(accuracies), n)) < np.array(accuracies)[:, None]
    label = np.where(right, truth, 1 - truth)
    return hidden, np.where(np.eye(2, dtype=bool)[label], 0.8, 0.2), truth


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_in_the_order_of_accuracy(seed: int) -> None:
    """Worse teachers cannot outvote the best one, as they do in the mean."""
    hidden, teachers, truth = planted((0.7, 0.9, 0.6), seed)
    learned = teacher_weights(hidden, teachers)
    assert np.argsort(learned.weights).tolist() == [2, 0, 1]
    assert learned.weights.sum() == pytest.approx(1) and learned.path.shape == (201, 3)
    assert learned.path[0] == pytest.approx(1 / 3)
    tops = teachers.argmax(2)
    assert learned.n_agreed == (tops == tops[0]).all(0).sum()
    assert learned.pooled == pytest.approx(np.tensordot(learned.weights, teachers, 1), abs=1e-6)
    mean = (teachers.mean(0).argmax(1) == truth).mean()
    assert (learned.pooled.argmax(1) == truth).mean() > mean + 0.03


def test_equal_teachers_have_equal_weights() -> None:
    hidden, teachers, _ = planted((0.8,), 0)
    learned = teacher_weights(hidden, np.repeat(teachers, 3, axis=0))
    assert learned.weights == pytest.approx(1 / 3, abs=1e-12)


def test_the_order_of_teachers_is_the_order_of_weights() -> None:
    hidden, teachers, _ = planted((0.9, 0.7, 0.6), 1)
    weights = teacher_weights(hidden, teachers).weights
    assert teacher_weights(hidden, teachers[::-1]).weights[::-1] == pytest.approx(weights, abs=1e-9)


def test_no_step_is_the_mean_and_more_steps_pick_fewer() -> None:
    hidden, teachers, _ = planted((0.9, 0.7), 2)
    none, some, many = (teacher_weights(hidden, teachers, steps=s).weights for s in (0, 50, 400))
    assert none == pytest.approx(0.5) and none[0] < some[0] < many[0]


def test_rows_left_out_teach_nothing_and_are_pooled() -> None:
    hidden, teachers, truth = planted((0.9, 0.7), 3)
    rows = np.arange(600) < 400
    broken = teachers.copy()
    broken[0, ~rows] = 1 - broken[0, ~rows]
    one, two = (teacher_weights(hidden, t, rows=rows) for t in (teachers, broken))
    assert one.weights == pytest.approx(two.weights, abs=1e-12) and len(two.pooled) == 600


def test_bad_input_is_named() -> None:
    hidden, teachers, _ = planted((0.9, 0.7), 4)
    with pytest.raises(W2SError, match="1 teachers; expected"):
        teacher_weights(hidden, teachers[:1])
    with pytest.raises(W2SError, match=r"teacher_probs\[1\] has 5 rows"):
        teacher_weights(hidden, [teachers[0], teachers[1][:5]])
    with pytest.raises(W2SError, match="teachers have 2, 3 classes"):
        teacher_weights(hidden, [teachers[0], np.full((600, 3), 1 / 3)])
    with pytest.raises(W2SError, match="agree on 0 of 600 rows"):
        teacher_weights(hidden, [teachers[0], 1 - teachers[0]])
    with pytest.raises(W2SError, match="rows has shape"):
        teacher_weights(hidden, teachers, rows=np.ones(600))
    for name, value in {"steps": -1, "rate": -0.1, "l2": -1}.items():
        with pytest.raises(W2SError, match=f"{name} is {value}"):
            teacher_weights(hidden, teachers, **{name: value})
