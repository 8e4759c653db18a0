"""Heads of class prototypes: by hand, the calibration of rare classes, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.probing import HeadRun, prototype_head, train_heads
from w2s_fast.probing.prototype_head import calibrate
from w2s_fast.training import TrainConfig


def _rows(n: int = 300, classes: int = 3, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return states around class means, far from the origin, and soft labels."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, n)
    means = rng.normal(size=(classes, width))
    x = 40 + means[truth] + 0.5 * rng.normal(size=(n, width))
    labels = np.where(np.eye(classes)[truth] == 1, 0.8, 0.2 / (classes - 1))
    return x, labels


def test_logits_are_distances_to_the_means() -> None:
    """Up to a constant of the row, and at the slope with the least cross-entropy."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    x, q = _rows()
    weight = np.random.default_rng(1).uniform(0.5, 2, len(x))
    head = prototype_head(torch.from_numpy(x), q, weight, rare=0.0)
    z = head(torch.from_numpy(x).float()).detach().numpy()
    means = np.stack([np.average(x, axis=0, weights=weight * q[:, k]) for k in range(3)])
    d = ((x[:, None] - means) ** 2).sum(2)
    slope = np.linalg.lstsq((d[:, :1] - d)[:, 1:].reshape(-1, 1),
                            (z - z[:, :1])[:, 1:].reshape(-1), rcond=None)[0][0]  # fmt: skip
    assert np.abs((z - z[:, :1]) - slope * (d[:, :1] - d)).max() < 2e-3  # fp32 at states near 40

    def cross_entropy(s: float) -> float:
        return -float((weight[:, None] * q * log_softmax(-s * d, axis=1)).sum())

    best = minimize_scalar(cross_entropy, bounds=(0, 50 / d.min(1).mean()), method="bounded").x
    assert slope == pytest.approx(best, rel=1e-2) and slope > 0.1


def test_rare_prototypes_are_drawn_to_frequent_ones() -> None:
    """tau 2, a 1/2: the softmax of cosines 1 and 0 by hand."""
    means = np.array([[2.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
    out = calibrate(means, np.array([False, False, True]), 2.0, 0.5)
    near = np.exp(2) / (np.exp(2) + 1)
    expected = 0.5 * means[2] + 0.5 * (near * means[0] + (1 - near) * means[1])
    assert np.allclose(out[2], expected) and np.array_equal(out[:2], means[:2])
    for none in (np.zeros(3, bool), np.ones(3, bool)):  # nothing to calibrate, or nothing to use
        assert np.array_equal(calibrate(means, none, 2.0, 0.5), means)


def test_which_classes_are_rare() -> None:
    """Below ``rare`` / C of the labels, counted by weights; others stay as they are."""
    x, q = _rows()
    few = q.argmax(1) == 2
    weight = np.where(few & (np.cumsum(few) > 3), 0.0, 1.0)
    q = np.eye(3)[q.argmax(1)]
    heads = [
        prototype_head(torch.from_numpy(x), q, weight, rare=rare, alpha=0.9, tau=1.0)
        for rare in (0.0, 0.5)
    ]
    directions = [h.weight.detach() / h.weight.detach().norm(dim=1, keepdim=True) for h in heads]
    same = (directions[0] * directions[1]).sum(1)
    assert same[:2].min() > 0.999 and same[2] < 0.95


def test_rows_of_weight_zero_change_nothing() -> None:
    x, q = _rows()
    weight = np.ones(len(x))
    weight[::3] = 0
    odd, labels = x.copy(), q.copy()
    odd[::3] += 100
    labels[::3] = [0, 0, 1]
    one, two = (prototype_head(torch.from_numpy(a), b, weight) for a, b in ((x, q), (odd, labels)))
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_a_training_of_heads_can_start_from_it() -> None:
    x, q = _rows()
    features, labels = torch.from_numpy(x - 40), q.astype(np.float32)
    start = prototype_head(features, labels)
    runs, cfg = [HeadRun(labels, make_loss("xent"))], TrainConfig(epochs=1, lr=1e-3)
    warm, cold = (train_heads(features, runs, cfg, 0, head=h).losses[0, 0] for h in (start, None))
    assert warm < cold - 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.ones(300)}, "features have shape"),
        ({"features": torch.ones(300, 6).long()}, "expected floating point"),
        ({"labels": np.ones(300)}, "expected class probabilities \\(N, C\\)"),
        ({"labels": np.eye(3)[np.zeros(300, int)]}, "class 1 has no weak labels"),
        ({"labels": np.full((300, 3), np.nan)}, "weak labels must be finite"),
        ({"weight": np.zeros(300)}, "all row weights are 0"),
        ({"weight": np.ones(3)}, "weight has shape"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"alpha": 1.5}, "alpha is 1.5; expected a number in \\[0, 1\\]"),
        ({"rare": -1.0}, "rare is -1.0; expected a number in \\[0, 1\\]"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    x, q = _rows()
    given: dict[str, Any] = {"features": torch.from_numpy(x), "labels": q, **change}
    with pytest.raises(W2SError, match=message):
        prototype_head(**given)
