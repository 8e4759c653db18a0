"""Moments against sums over rows, pairs and triples, and their addition over batches."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.planted_votes import planted

from w2s_fast import W2SError
from w2s_fast.label_models import moments as module
from w2s_fast.label_models.moments import elementary_symmetric, moments, third_moment
from w2s_fast.ops.votes import ref


def one_hot(votes: torch.Tensor, k: int) -> torch.Tensor:
    return torch.stack([votes == c for c in range(k)], 1).double()  # (n, K, m)


@pytest.mark.parametrize("k", [2, 3])
def test_covariances_equal_those_of_one_hot_votes(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ref, "_ONE_HOT_CELLS", 100)
    votes = planted(101, 4, [1 / k] * k).votes
    x = one_hot(votes, k)
    full = moments(votes, k, across_classes=True)
    torch.testing.assert_close(full.covariance(), torch.cov(x.flatten(1).T, correction=0))
    torch.testing.assert_close(full.means, x.mean(0))
    own = moments(votes, k, across_classes=False)
    for c in range(k):
        torch.testing.assert_close(own.covariance()[c], torch.cov(x[:, c].T, correction=0))


def test_sums_of_batches() -> None:
    votes = planted(90, 4, [0.5, 0.5]).votes
    a, b = (moments(v, 2, across_classes=True) for v in votes.split([30, 60]))
    total = moments(votes, 2, across_classes=True)
    torch.testing.assert_close((a + b).covariance(), total.covariance())
    torch.testing.assert_close((total - b).covariance(), a.covariance())


def test_elementary_symmetric_polynomials() -> None:
    v = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    for degree in (2, 3):
        terms = [v[:, list(c)].prod(1) for c in itertools.combinations(range(6), degree)]
        torch.testing.assert_close(elementary_symmetric(v, degree), sum(terms))


@pytest.mark.parametrize("pooled", [True, False])
def test_third_moment_sums_over_all_triples(pooled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TABLE_CELLS", 10)
    n, k, m = 40, 2, 5
    votes = planted(n, m, [0.7, 0.3]).votes
    w = torch.rand(k, m, generator=torch.Generator().manual_seed(1)).double()
    x = one_hot(votes, k)
    z = w * (x - x.mean(0))
    z = z.sum(1, keepdim=True) if pooled else z
    triples = itertools.combinations(range(m), 3)
    expected = sum(z[:, :, list(t)].prod(2).sum(0) for t in triples) * n**2 / ((n - 1) * (n - 2))
    torch.testing.assert_close(third_moment(votes, w, pooled=pooled).total, expected)


def test_third_moments_of_small_batches_are_unbiased() -> None:
    """Every batch has its own means: without the correction the sum would be 12 % too small."""
    votes = planted(60_000, 6, [0.85, 0.15], accuracy=(0.8, 0.9)).votes
    w = torch.tensor([[-1.0], [1.0]]).double().expand(2, 6)
    whole = float(third_moment(votes, w, pooled=True).total)
    batches = [third_moment(v, w, pooled=True) for v in votes.split(25)]
    total = sum(batches[1:], batches[0])
    assert total.n_rows == 60_000
    assert float(total.total) == pytest.approx(whole, rel=0.03)


def test_moments_that_do_not_fit() -> None:
    with pytest.raises(W2SError, match="second moments of 300 sources and 50 classes"):
        moments(torch.zeros(1, 300, dtype=torch.int8), 50, across_classes=True)
