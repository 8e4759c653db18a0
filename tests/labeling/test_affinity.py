"""Affinity coding: mixtures find planted clusters, and labels name them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from w2s_fast import W2SError
from w2s_fast.labeling import affinity_labels
from w2s_fast.labeling.mixture import bernoulli_mixture, gaussian_mixture


def clusters(n: int, k: int, seed: int = 0, dims: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in k directions, and the cluster of each."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=g)
    return 4 * torch.eye(dims, dtype=torch.float64)[y] + torch.randn(n, dims, generator=g), y


@pytest.mark.parametrize("k", [2, 3])
def test_clusters_get_the_names_of_their_labeled_rows(k: int) -> None:
    x, y = clusters(400, k)
    known = torch.cat([(y == c).nonzero()[:3, 0] for c in range(k)])
    probs = affinity_labels(x, known, y[known], k)
    assert probs.shape == (400, k) and probs.dtype == torch.float64
    torch.testing.assert_close(probs.sum(1), torch.ones(400, dtype=torch.float64))
    assert float((probs.argmax(1) == y).double().mean()) > 0.95
    other = (y + 1) % k
    renamed = affinity_labels(x, known, other[known], k)
    torch.testing.assert_close(renamed[:, (torch.arange(k) + 1) % k], probs)


def test_several_views_outvote_a_useless_one() -> None:
    x, y = clusters(300, 2)
    again, _ = clusters(300, 2, seed=0)
    noise = torch.randn(300, 12, generator=torch.Generator().manual_seed(9))
    known = torch.arange(10)
    third = again + 0.5 * torch.randn(300, 12, generator=torch.Generator().manual_seed(4))
    probs = affinity_labels([x, noise, third], known, y[known], 2)
    assert float((probs.argmax(1) == y).double().mean()) > 0.95


def test_a_class_of_several_clusters_needs_several_clusters() -> None:
    x, cluster = clusters(600, 6)
    y = cluster % 2
    known = torch.arange(40)
    few = affinity_labels(x, known, y[known], 2)
    many = affinity_labels(x, known, y[known], 2, n_clusters=8)
    torch.testing.assert_close(many.sum(1), torch.ones(600, dtype=torch.float64))
    right = [float((p.argmax(1) == y).double().mean()) for p in (few, many)]
    assert right[1] > 0.9 > right[0]


def test_labels_only_name_clusters() -> None:
    x, y = clusters(200, 2)
    known = torch.arange(20)
    wrong = y[known].clone()
    wrong[:4] = 1 - wrong[:4]
    torch.testing.assert_close(
        affinity_labels(x, known, wrong, 2), affinity_labels(x, known, y[known], 2)
    )


def test_order_of_rows_does_not_matter_with_all_anchors() -> None:
    x, y = clusters(120, 2)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    known = torch.arange(8)
    probs = affinity_labels(x, known, y[known], 2)
    shuffled = affinity_labels(x[order], place[known], y[known], 2)
    torch.testing.assert_close(shuffled, probs[order], atol=1e-6, rtol=0)


def test_gaussians_are_recovered() -> None:
    """Equal means and different variances, which no distance to a center tells apart."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (1000,), generator=g)
    x = torch.randn(1000, 8, generator=g).double() * (1 + 3 * y[:, None]) + y[:, None]
    r = gaussian_mixture(x, 2, seed=0)
    right = float((r.argmax(1) == y).double().mean())
    assert max(right, 1 - right) > 0.95


def test_components_have_their_weights() -> None:
    """A rare component of the same shape: without weights it would take rows of the other."""
    g = torch.Generator().manual_seed(0)
    y = torch.rand(4000, generator=g) < 0.1
    x = torch.randn(4000, 1, generator=g).double() + 2.5 * y[:, None]
    r = gaussian_mixture(x, 2, seed=0)
    rare = int(r.mean(0).argmin())
    assert float(r[:, rare].mean()) == pytest.approx(0.1, abs=0.03)
    assert float(((r[:, rare] > 0.5) == y).double().mean()) > 0.93


def test_bernoullis_are_recovered() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (1000,), generator=g)
    x = (torch.rand(1000, 15, generator=g) < torch.where(y == 1, 0.75, 0.25)[:, None]).double()
    r = bernoulli_mixture(x, 2, seed=0)
    right = float((r.argmax(1) == y).double().mean())
    assert max(right, 1 - right) > 0.93
    torch.testing.assert_close(r.sum(1), torch.ones(1000, dtype=torch.float64))


def test_equal_rows_have_no_clusters() -> None:
    same = torch.ones(10, 3, dtype=torch.float64)
    torch.testing.assert_close(gaussian_mixture(same, 2, 0), torch.full((10, 2), 0.5).double())
    assert bool(bernoulli_mixture(same, 2, 0).isfinite().all())


X, Y = clusters(30, 2)
KNOWN = torch.tensor([0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": X[:, 0]}, "features have shape (30,)"),
        ({"features": [X, X[:5]]}, "view 1 has 5 rows and view 0 has 30; expected equal"),
        ({"features": X / 0}, "that are not finite"),
        ({"labeled_rows": KNOWN.double()}, "labeled_rows have dtype torch.float64"),
        ({"labeled_rows": KNOWN + 25}, "labeled_rows have 30; expected 0 to 29"),
        ({"labeled_rows": KNOWN * 0}, "labeled_rows name a row twice"),
        ({"labeled_rows": torch.ones(30, dtype=torch.bool)}, "labeled_rows have dtype torch.bool"),
        ({"labels": Y[:2]}, "labels have shape (2,); expected one a row, (6,)"),
        ({"labels": Y[KNOWN] * 0}, "class 1 has 0 labeled rows; expected at least 1"),
        ({"n_clusters": 1}, "n_clusters is 1; expected a number from 2 to 30"),
        ({"max_anchors": 1}, "max_anchors is 1; expected a number at least 2"),
    ],
)
def test_wrong_input(change: dict[str, Any], message: str) -> None:
    arguments = {"features": X, "labeled_rows": KNOWN, "labels": Y[KNOWN], "n_classes": 2}
    with pytest.raises(W2SError, match=re.escape(message)):
        affinity_labels(**{**arguments, **change})


def test_lists_of_numbers_are_one_view() -> None:
    nested = X.tolist()
    expected = affinity_labels(X, KNOWN, Y[KNOWN], 2)
    torch.testing.assert_close(
        affinity_labels(nested, KNOWN.tolist(), Y[KNOWN].tolist(), 2), expected
    )
    torch.testing.assert_close(affinity_labels(np.array(nested), KNOWN, Y[KNOWN], 2), expected)
