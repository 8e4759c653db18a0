"""Row weights, selection between two sources, and smoothing over neighbors, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.trust import selective_labels, smooth_labels, trust_weights


def test_soft_weights_have_mean_one_and_filters_keep_the_most_trusted() -> None:
    trust = np.array([0.2, 0.8, 0.5, 0.8, 0.2])
    assert trust_weights(trust) == pytest.approx(trust / 0.5)
    assert trust_weights(trust).dtype == np.float32
    assert trust_weights(trust, "filter", share=0.4).tolist() == [0, 1, 0, 1, 0]
    assert trust_weights(trust, "filter", share=0.8).tolist() == [1, 1, 1, 1, 0]  # ties: the first
    assert trust_weights(trust, "filter", share=0.0).tolist() == [0, 1, 0, 0, 0]
    assert trust_weights(trust, "filter", threshold=0.5).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"mode": "hard"}, "mode is 'hard'; expected one of soft, filter"),
        ({"share": 0.5}, "use mode='filter'"),
        ({"mode": "filter"}, "expected one of them"),
        ({"mode": "filter", "share": 0.5, "threshold": 0.5}, "expected one of them"),
        ({"mode": "filter", "share": 2}, "share is 2"),
        ({"mode": "filter", "threshold": 0.95}, "none of 2 rows reaches"),
    ],
)
def test_wrong_modes_are_named(arguments: dict, problem: str) -> None:
    with pytest.raises(W2SError, match=problem):
        trust_weights([0.5, 0.9], **arguments)


@pytest.mark.parametrize("trust", [[], [[0.5]], [0.5, 1.2], [0.5, np.nan], [0.0, 0.0], ["a"]])
def test_wrong_trust_is_refused(trust: list) -> None:
    with pytest.raises(W2SError, match="trust"):
        trust_weights(trust)


def test_own_labels_where_the_model_knows() -> None:
    own, weak = np.array([[0.9, 0.1]] * 3), np.array([[0.2, 0.8]] * 3)
    labels, chosen = selective_labels(own, weak, [0.7, 0.69, 1.0], threshold=0.7)
    assert chosen.tolist() == [True, False, True]
    assert labels[:, 0] == pytest.approx([0.9, 0.2, 0.9]) and labels.dtype == np.float32
    with pytest.raises(W2SError, match="those of the weak labels"):
        selective_labels(own, weak, [0.5, 0.5])
    with pytest.raises(W2SError, match="own has 2 rows"):
        selective_labels(own[:2], weak, [0.5] * 3)
    with pytest.raises(W2SError, match="threshold is 70"):
        selective_labels(own, weak, [0.5] * 3, threshold=70)


def test_smoothing_solves_its_equation() -> None:
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=(30, 4)), rng.random((30, 1))
    probs = np.concatenate([p, 1 - p], 1)
    distance = ((x[:, None] - x) ** 2).sum(2) + np.diag(np.full(30, np.inf))
    near = np.argsort(distance, 1)[:, :3]
    graph = np.zeros((30, 30))
    graph[np.repeat(np.arange(30), 3), near.ravel()] = 1
    graph = np.maximum(graph, graph.T)
    scale = 1 / np.sqrt(graph.sum(1))
    exact = 0.2 * np.linalg.solve(np.eye(30) - 0.8 * scale[:, None] * graph * scale, probs)
    exact /= exact.sum(1, keepdims=True)
    assert smooth_labels(x, probs, k=3, alpha=0.8) == pytest.approx(exact, abs=1e-6)
    assert smooth_labels(x, probs, alpha=0) == pytest.approx(probs)


def test_smoothing_repairs_independent_errors() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 1000)
    x = rng.normal(size=(1000, 4)) + 2 * (2 * truth - 1)[:, None]
    label = np.where(rng.random(1000) < 0.3, 1 - truth, truth)
    smooth = smooth_labels(x, np.where(np.eye(2, dtype=bool)[label], 0.9, 0.1), alpha=0.9)
    assert (label == truth).mean() < 0.75 and (smooth.argmax(1) == truth).mean() > 0.97
    for name, value in {"alpha": 1.0, "k": 1.5}.items():
        with pytest.raises(W2SError, match=f"{name} is {value}"):
            smooth_labels(x, smooth, **{name: value})
