"""Moments of votes as sums over rows: they are added in one pass, batch by batch, and subtracted.

x[l, j] is 1 where source j votes for class l. The third moment is that of all triples of sources at
once: sum_{i<j<k} z_i z_j z_k is an elementary symmetric polynomial of the sources' scores
z_j = sum_l w[l, j] (x[l, j] - mean), and costs n m operations instead of n m^3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models.rates import LEAST
from w2s_fast.label_models.votes import OneHotVotes, check_columns, constant_columns, one_hot
from w2s_fast.ops.dispatch import host_backend

_TABLE_CELLS = 1 << 21  # of scores by class and source, of a pass over the rows
MAX_CELLS = 1 << 27  # second moments, 8 bytes each


@dataclass
class Moments:
    """Sums over rows.

    Attributes:
        n_rows: number of rows.
        first: (K, m) sums of x.
        second: (K m, K m) sums of x x^T, or (K, m, m) of votes for the same class.
    """

    n_rows: int
    first: Tensor
    second: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n_rows + other.n_rows, self.first + other.first, self.second + other.second
        )

    def __sub__(self, other: Moments) -> Moments:
        return Moments(
            self.n_rows - other.n_rows, self.first - other.first, self.second - other.second
        )

    @property
    def means(self) -> Tensor:
        """Return the shares of votes, (K, m)."""
        return self.first / self.n_rows

    def covariance(self) -> Tensor:
        """Return the covariances of x, in the shape of ``second``."""
        covariance = self.second / self.n_rows
        # In place: for a thousand sources of fifty classes each copy takes 400 MB.
        if covariance.ndim == 2:
            return covariance.addr_(*[self.means.flatten()] * 2, alpha=-1)
        return covariance.baddbmm_(self.means[:, :, None], self.means[:, None, :], alpha=-1)


def moments(votes: Tensor, n_classes: int, *, across_classes: bool) -> Moments:
    """Sum first and second moments over the rows of checked votes (n, m).

    Args:
        votes: (n, m).
        n_classes: K.
        across_classes: pairs of votes for different classes too.

    Raises:
        W2SError: The second moments would not fit in memory.
    """
    n, m = votes.shape
    cells = (n_classes * m) ** 2 if across_classes else n_classes * m**2
    if cells > MAX_CELLS:
        raise W2SError(
            f"second moments of {m} sources and {n_classes} classes have {cells} entries; expected "
            f"at most {MAX_CELLS}: use DawidSkene, whose memory grows with sources x classes^2"
        )
    backend = host_backend("votes")
    second: Tensor = backend.second_moments(votes, n_classes, across_classes=across_classes)
    # The second moment of a source with itself is how often it votes for a class.
    first = second.diagonal(dim1=-2, dim2=-1).reshape(n_classes, m).clone()
    return Moments(n, first, second)


def check_moments(moments: Moments) -> None:
    """Check that votes identify rates, as ``check_sources``, without another pass over them.

    Raises:
        W2SError: No source votes, or fewer than three sources vary.
    """
    (k, m), own = moments.first.shape, moments.second
    if own.ndim == 2:
        own = own.view(k, m, k, m).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    agreed, cast = own.sum(0), moments.first.sum(0)
    equal = (agreed == cast) & (agreed == cast[:, None])
    groups: dict[int, list[int]] = {}
    for source, first in enumerate(equal.int().argmax(1).tolist()):
        groups.setdefault(first, []).append(source)
    duplicates = [group for group in groups.values() if len(group) > 1]
    constant = constant_columns(moments.first, moments.n_rows)
    check_columns(cast / moments.n_rows, constant, duplicates)


@dataclass
class ThirdMoment:
    """Third central moment of all triples of sources, by class or pooled over classes.

    Attributes:
        n_rows: number of rows.
        total: (G,) sums over rows; G is 1 if scores pool the classes, else K.
    """

    n_rows: int
    total: Tensor

    def __add__(self, other: ThirdMoment) -> ThirdMoment:
        return ThirdMoment(self.n_rows + other.n_rows, self.total + other.total)

    def __sub__(self, other: ThirdMoment) -> ThirdMoment:
        return ThirdMoment(self.n_rows - other.n_rows, self.total - other.total)


def third_moment(votes: Tensor, weights: Tensor, *, pooled: bool) -> ThirdMoment:
    """Sum the third central moment of all triples of sources over the rows of checked votes.

    Each call centres by its own means and corrects the bias of that (k-statistic), so sums over
    batches are unbiased.

    Args:
        votes: (n, m), n above 2.
        weights: (K, m), w.
        pooled: a source's score sums over classes; else every class has its own.
    """
    n, (k, m) = len(votes), weights.shape
    x = one_hot(votes, k)
    means = x.transposed_times(weights.new_ones(n, 1))[:, :, 0] / n
    absent = -weights * means  # z of class c where the source does not vote for c
    if pooled:
        absent = absent.sum(0, keepdim=True)
        scores = (weights + absent)[:, :, None]  # (K, m, 1): z of a vote for c
    else:
        scores = absent.T.repeat(k, 1, 1)  # (K, m, K): z of all classes for a vote for c
        own = range(k)
        scores[own, :, own] += weights
    groups, total = len(absent), []
    for first in range(0, groups, max(1, _TABLE_CELLS // (k * m))):
        part = slice(first, first + max(1, _TABLE_CELLS // (k * m)))
        total.append(_sum_of_triples(x, scores[:, :, part], absent[part].T))
    return ThirdMoment(n, torch.cat(total) * _unbias(n))


def _sum_of_triples(x: OneHotVotes, scores: Tensor, absent: Tensor) -> Tensor:
    """Return (G,): sums over rows and triples of sources of products of scores.

    Args:
        x: n rows of m sources.
        scores: (K, m, G) of a vote.
        absent: (m, G) of an abstention.
    """
    powers = torch.cat([scores**p - absent**p for p in (1, 2, 3)], 2)
    sums = x.times(powers, torch.cat([(absent**p).sum(0) for p in (1, 2, 3)]))
    return _third_symmetric(*sums.chunk(3, 1)).sum(0)


def third_of(scores: Tensor, weights: Tensor) -> ThirdMoment:
    """Sum the third central moment of all triples of continuous scores, as ``third_moment``.

    Args:
        scores: (n, m) float64, n above 2.
        weights: (m,) factors of the scores.
    """
    n = len(scores)
    total = elementary_symmetric((scores - scores.mean(0)) * weights, 3).sum()[None]
    return ThirdMoment(n, total * _unbias(n))


def _unbias(n: int) -> float:
    """Return the factor by which centring by the sample's own means shrinks third moments.

    Raises:
        W2SError: Fewer than three rows have no third moment.
    """
    if n < 3:
        raise W2SError(f"{n} rows; expected at least 3 at a time to estimate the class balance")
    return (n / (n - 1)) * (n / (n - 2))


def class_one_share(third: ThirdMoment, scores: Tensor) -> Tensor:
    """Return P(x = 1), (G,), of binary classes whose third moment is kappa times products.

    Args:
        third: of G groups.
        scores: (G, m) weighted loadings of the same groups.
    """
    kappa = third.total / third.n_rows / elementary_symmetric(scores, 3)
    share = (1 - kappa / (4 + kappa.square()).sqrt()) / 2
    return share.clamp(LEAST, 1 - LEAST)


def elementary_symmetric(values: Tensor, degree: int) -> Tensor:
    """Return the sum over all pairs or triples of the last axis of their products.

    Args:
        values: (..., m).
        degree: 2 or 3, by Newton's identities.
    """
    p1, p2 = values.sum(-1), values.square().sum(-1)
    if degree == 2:
        return (p1**2 - p2) / 2
    return _third_symmetric(p1, p2, values.pow(3).sum(-1))


def _third_symmetric(p1: Tensor, p2: Tensor, p3: Tensor) -> Tensor:
    """Return the sum over all triples of their products, from sums of powers."""
    return (p1**3 - 3 * p1 * p2 + 2 * p3) / 6
