r"""Learn which sources depend on one another given the class: a forest of pairs.

    I_ij = sum_{c,a,b} P(c, a, b) log( P(a, b | c) / (P(a | c) P(b | c)) )
    gain_ij = n I_ij - (K (S_i - 1) (S_j - 1) / 2) log n

I_ij is the mutual information of the votes of sources i and j given the class, S_i the number of
symbols that source i uses. Pairs without gain are pruned (BIC); the spanning forest of largest gain
is the most likely model in which every source depends on the class and one other source.

Sources: Chow and Liu 1968, "Approximating discrete probability distributions with dependence
trees"; given a class: Friedman, Geiger and Goldszmidt 1997, "Bayesian network classifiers".
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models.majority import majority_vote
from w2s_fast.label_models.moments import MAX_CELLS, moments
from w2s_fast.label_models.votes import symbols_of
from w2s_fast.ops.votes.blocks import row_blocks

_BLOCK_CELLS = 1 << 18
_RIDGE = 0.01  # of correlations, so that copies share their weight


def pair_counts(votes: Tensor, q: Tensor) -> Tensor:
    """Return expected counts (K, m, K+1, m, K+1) of the symbols of all pairs of sources, float64.

    Args:
        votes: checked votes (n, m).
        q: (n, K) class probabilities of the rows.

    Raises:
        W2SError: The counts would not fit in memory.
    """
    (n, m), k = votes.shape, q.shape[1]
    width = (k + 1) * m
    if k * width**2 > MAX_CELLS:
        raise W2SError(
            f"counts of pairs of {m} sources and {k} classes have {k * width**2} entries; expected "
            f"at most {MAX_CELLS}: pass the dependencies, or use DawidSkene"
        )
    counts = torch.zeros(k, width, width, dtype=torch.float64)
    for rows in row_blocks(n, max(1, _BLOCK_CELLS // width)):
        symbols = symbols_of(votes[rows], k)
        x = torch.nn.functional.one_hot(symbols, k + 1).flatten(1).double()
        for c in range(k):
            counts[c] += (x * q[rows, c, None]).T @ x
    return counts.view(k, m, k + 1, m, k + 1)


def conditional_information(counts: Tensor) -> Tensor:
    """Return (m, m): mutual information in nats of the votes of two sources given the class.

    Args:
        counts: (K, m, S, m, S), see ``pair_counts``.
    """
    k, m, s = counts.shape[:3]
    own = range(m)
    single = counts[:, own, :, own, :].diagonal(dim1=-2, dim2=-1).permute(1, 0, 2)  # (K, m, S)
    total = single.sum(2)[:, 0]  # rows of each class
    n = total.sum()
    expected = single[:, :, :, None, None] * single[:, None, None] / total.view(-1, 1, 1, 1, 1)
    terms = counts * (counts.clamp(min=1e-300) / expected.clamp(min=1e-300)).log()
    return terms.sum((0, 2, 4)) / n


def learn_forest(votes: Tensor, q: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the pairs (i, j), i < j, of the forest of largest gain, sorted.

    Args:
        votes: checked votes (n, m).
        q: (n, K) class probabilities of the rows.

    Raises:
        W2SError: The counts of pairs would not fit in memory.
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    n, k = q.shape
    counts = pair_counts(votes, q)
    own = range(votes.shape[1])
    used = (counts[:, own, :, own, :].diagonal(dim1=-2, dim2=-1).sum(1) > 0).sum(1)  # S_i
    parameters = k * torch.outer(used - 1, used - 1).double() / 2
    gain = n * conditional_information(counts) - parameters * torch.tensor(float(n)).log()
    gain = gain.triu(1).clamp(min=0)
    tree = minimum_spanning_tree(-gain.numpy()).tocoo()
    pairs = ((int(min(i, j)), int(max(i, j))) for i, j in zip(tree.row, tree.col, strict=True))
    return tuple(sorted(pairs))


def decorrelated_vote(votes: Tensor, n_classes: int) -> Tensor:
    """Return a vote (n, K) in which copies of a source share one weight, to start EM from.

    Weights solve (correlation + ridge) w = 1, as for the best linear combination of equally good
    and correlated estimates; weights below 0 are set to 0.
    """
    covariance = moments(votes, n_classes, across_classes=False).covariance().sum(0)
    spread = covariance.diagonal().clamp(min=1e-12).sqrt()
    correlation = covariance / torch.outer(spread, spread)
    eye = torch.eye(len(spread), dtype=torch.float64)
    ones = torch.ones(len(spread), dtype=torch.float64)
    weights = torch.linalg.solve(correlation + _RIDGE * eye, ones).clamp(min=0)
    return majority_vote(votes, n_classes, weights)
