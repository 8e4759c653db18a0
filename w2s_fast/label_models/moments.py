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
from w2s_fast.label_models.votes import row_blocks

_BLOCK_CELLS = 1 << 18  # one-hot cells of a block, which stay in cache; their sums are exact
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
        mean = self.means if self.second.ndim == 3 else self.means.flatten()
        return self.second / self.n_rows - mean[..., :, None] * mean[..., None, :]


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
    shape = (n_classes * m,) * 2 if across_classes else (n_classes, m, m)
    second = torch.zeros(shape, dtype=torch.float64, device=votes.device)
    for rows in row_blocks(n, max(1, _BLOCK_CELLS // (n_classes * m))):
        classes = [votes[rows] == c for c in range(n_classes)]  # each (b, m)
        if across_classes:
            x = torch.cat(classes, 1).float()
            second += x.T @ x
        else:
            for c, x in enumerate(classes):
                second[c] += x.float().T @ x.float()
    # The second moment of a source with itself is how often it votes for a class.
    first = second.diagonal(dim1=-2, dim2=-1).reshape(n_classes, m).clone()
    return Moments(n, first, second)


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
    n, k = len(votes), len(weights)
    means = torch.stack([(votes == c).double().mean(0) for c in range(k)])
    total = weights.new_zeros(1 if pooled else k)
    for rows in row_blocks(n, max(1, _BLOCK_CELLS // (k * votes.shape[1]))):
        x = torch.stack([votes[rows] == c for c in range(k)], 1).double()
        z = weights * (x - means)  # (b, K, m)
        total += elementary_symmetric(z.sum(1, keepdim=True) if pooled else z, 3).sum(0)
    return ThirdMoment(n, total * _unbias(n))


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
    return (p1**3 - 3 * p1 * p2 + 2 * values.pow(3).sum(-1)) / 6
