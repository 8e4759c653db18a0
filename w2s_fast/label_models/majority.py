r"""Majority and weighted vote.

    P(Y = c | L) = sum_j w_j 1[L_j = c] / sum_j w_j 1[L_j >= 0]        majority: w_j = 1
    w_j = log((K - 1) a_j / (1 - a_j))                                  weighted

a_j is the agreement of source j with the majority of the other sources, over rows where both exist.
Log-odds weights are optimal for independent sources whose errors are spread over the other classes.
A row without votes gets the class balance. Ties leave equal shares.

Source of the weights: Nitzan and Paroush 1982, "Optimal decision rules in uncertain dichotomous
choice situations"; K classes: Li and Yu 2014 (arXiv 1411.4086).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._options import check_choice, check_number
from w2s_fast.label_models.posterior import check_distribution
from w2s_fast.label_models.votes import (
    OneHotVotes,
    as_cpu_tensor,
    check_any_vote,
    check_sources,
    check_votes,
    covered_rows,
    one_hot,
)
from w2s_fast.ops.votes.blocks import row_blocks

BALANCES = ("uniform", "majority")
_ROWS = 1 << 16  # rows of a block
_TABLE_CELLS = 1 << 22  # of weights by class, source and class


def majority_vote(
    votes: Any, n_classes: int, weights: Any = None, class_balance: Any = None
) -> Tensor:
    """Compute the share of votes, or of their weights, for each class: (n, K) float64.

    Args:
        votes: (n, m) integers of -1 .. K-1.
        n_classes: K.
        weights: (m,) of at least 0, by source; None counts all alike.
        class_balance: (K,) probabilities, the answer for rows without votes; None is uniform.

    Raises:
        W2SError: Votes, weights or class balance are wrong.
    """
    matrix = check_votes(votes, n_classes)
    if class_balance is None:
        class_balance = [1 / n_classes] * n_classes
    balance = check_distribution(class_balance, n_classes)
    return _shares(matrix, n_classes, _check_weights(weights, matrix.shape[1]), balance)


def _check_weights(weights: Any, n_sources: int) -> Tensor:
    if weights is None:
        return torch.ones(n_sources, dtype=torch.float64)
    weights = as_cpu_tensor(weights, "weights cannot be read as numbers (m,)").double()
    if weights.shape != (n_sources,):
        raise W2SError(f"weights have shape {tuple(weights.shape)}; expected ({n_sources},)")
    bad = ~((weights >= 0) & weights.isfinite())
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise W2SError(
            f"weight of source {at} is {float(weights[at])}; expected a number of at least 0"
        )
    return weights


def _shares(votes: Tensor, n_classes: int, weights: Tensor, balance: Tensor) -> Tensor:
    return _normalized(_class_sums(votes, n_classes, weights), balance)


def _normalized(counts: Tensor, balance: Tensor) -> Tensor:
    total = counts.sum(1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1e-300), balance)


def _class_sums(votes: Tensor, n_classes: int, weights: Tensor) -> Tensor:
    """Return the summed weights of the votes for each class, (n, K) float64."""
    if n_classes**2 * len(weights) <= _TABLE_CELLS:
        return _sums_of(one_hot(votes, n_classes), weights)
    sums = weights.new_empty(len(votes), n_classes)
    for rows in row_blocks(len(votes), _ROWS):
        for c in range(n_classes):
            sums[rows, c] = (votes[rows] == c).double() @ weights
    return sums


def _balance_of(given: Any, votes: Tensor, n_classes: int) -> Tensor:
    """Return the class balance (K,) that rows without votes get."""
    if isinstance(given, str):
        check_choice("class_balance", given, BALANCES)
        if given == "majority":
            return majority_balance(votes, n_classes)
    if given is None or isinstance(given, str):
        return torch.full((n_classes,), 1 / n_classes, dtype=torch.float64)
    return check_distribution(given, n_classes)


@dataclass
class MajorityVote:
    """The majority vote with the interface of a label model.

    Attributes:
        n_classes: K.
        class_balance: probabilities of rows without votes: (K,); ``"majority"``, the class balance
            of the majority vote over the other rows; ``"uniform"``, or None for the same.
        prior: (K,) float64, these probabilities, after ``fit``.
    """

    n_classes: int
    class_balance: Any = None
    prior: Tensor = field(init=False, repr=False)

    def fit(self, votes: Any) -> Self:
        """Read the class balance of votes (n, m) of -1 .. K-1; return the model.

        Raises:
            W2SError: The votes are wrong, or every source abstains for every row.
        """
        matrix = check_votes(votes, self.n_classes)
        check_any_vote(covered_rows(matrix))
        self.prior = _balance_of(self.class_balance, matrix, self.n_classes)
        return self

    def posterior(self, votes: Any) -> Tensor:
        """Compute the share of votes for each class, (n, K) float64, of votes (n, m).

        Raises:
            W2SError: The model is not fitted, or the votes are wrong.
        """
        if not hasattr(self, "prior"):
            raise W2SError("MajorityVote has no class balance yet; call fit(votes) first")
        return majority_vote(votes, self.n_classes, class_balance=self.prior)


@dataclass
class WeightedVote:
    """Weigh sources by the log-odds of their agreement with the majority of the others.

    Attributes:
        n_classes: K.
        class_balance: probabilities for rows without votes, as in ``MajorityVote``.
        smoothing: right and wrong votes, together, that every source has at the mean agreement.
        agreement: (m,) float64, a_j, after ``fit``.
        weights: (m,) float64 of at least 0, after ``fit``; 0 at or below chance.
    """

    n_classes: int
    class_balance: Any = None
    smoothing: float = 10.0
    agreement: Tensor = field(init=False, repr=False)
    weights: Tensor = field(init=False, repr=False)
    _prior: Tensor = field(init=False, repr=False)
    _sums: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("smoothing", self.smoothing, 1e-6)

    def fit(self, votes: Any) -> Self:
        """Estimate agreement and weights from votes (n, m) of -1 .. K-1; return the model.

        Raises:
            W2SError: The votes are wrong, or no source agrees with others better than chance.
        """
        matrix = check_votes(votes, self.n_classes)
        check_sources(matrix, self.n_classes)
        self._prior = _balance_of(self.class_balance, matrix, self.n_classes)
        self._sums = _leave_one_out(matrix, self.n_classes)
        self._weigh()
        return self

    def partial_fit(self, votes: Any) -> Self:
        """Add further rows (n, m) to the agreement; the first call is ``fit``.

        Raises:
            W2SError: The votes are wrong, or no source agrees with others better than chance.
        """
        if not hasattr(self, "weights"):
            return self.fit(votes)
        matrix = check_votes(votes, self.n_classes, len(self.weights))
        self._sums = self._sums + _leave_one_out(matrix, self.n_classes)
        self._weigh()
        return self

    def _weigh(self) -> None:
        right, compared = self._sums
        mean = right.sum() / compared.sum().clamp(min=1)
        self.agreement = (right + self.smoothing * mean) / (compared + self.smoothing)
        odds = (self.n_classes - 1) * self.agreement / (1 - self.agreement).clamp(min=1e-6)
        self.weights = odds.clamp(min=1e-300).log().clamp(min=0)
        if not bool((self.weights > 0).any()):
            raise W2SError(
                f"sources agree with the majority of the others in {float(mean):.3f} of their "
                "votes; expected more than chance: check the class order of votes"
            )

    def posterior(self, votes: Any) -> Tensor:
        """Compute weighted shares of votes, (n, K) float64, of votes (n, m) by the fitted sources.

        Raises:
            W2SError: The model is not fitted, or the votes do not suit it.
        """
        if not hasattr(self, "weights"):
            raise W2SError("WeightedVote has no weights yet; call fit(votes) first")
        check_votes(votes, self.n_classes, len(self.weights))
        return majority_vote(votes, self.n_classes, self.weights, self._prior)


def _leave_one_out(votes: Tensor, n_classes: int) -> Tensor:
    """Return (2, m): votes that agree with the others' majority, ties shared; votes compared."""
    m = votes.shape[1]
    counts = _class_sums(votes, n_classes, torch.ones(m, dtype=torch.float64))
    sums = counts.new_zeros(2, m)
    for c in range(n_classes):  # votes for c: the others' counts are these counts minus one at c
        others = counts.clone()
        others[:, c] -= 1
        top = others.amax(1)
        share = (others[:, c] == top).double() / (others == top[:, None]).sum(1)
        exists = (top > 0).double()
        scores = torch.stack([share * exists, exists])
        for rows in row_blocks(len(votes), _ROWS):
            sums += scores[:, rows] @ (votes[rows] == c).double()
    return sums


def _sums_of(votes: OneHotVotes, weights: Tensor) -> Tensor:
    """Return the summed weights of the votes for each class, (n, K) float64."""
    table = weights[:, None, None] * torch.eye(votes.n_classes, dtype=torch.float64)
    return votes.times(table.transpose(0, 1))


def majority_start(votes: OneHotVotes, balance: Tensor | None) -> Tensor:
    """Return the shares of votes (n, K) from which EM starts.

    Args:
        votes: n rows.
        balance: (K,) class probabilities of rows without votes; None: those of the other rows.
    """
    counts = _sums_of(votes, torch.ones(votes.votes.shape[1], dtype=torch.float64))
    return _normalized(counts, _mean_share(counts) if balance is None else balance)


def majority_balance(votes: Tensor, n_classes: int) -> Tensor:
    """Return the class balance (K,) of the majority vote over rows with votes."""
    ones = torch.ones(votes.shape[1], dtype=torch.float64)
    return _mean_share(_class_sums(votes, n_classes, ones))


def _mean_share(counts: Tensor) -> Tensor:
    """Return the mean share of votes (K,) over rows with votes, from counts (n, K)."""
    total = counts @ counts.new_ones(counts.shape[1])
    weights = torch.where(total > 0, 1 / total.clamp(min=1), 0.0)
    shares = (weights @ counts / (total > 0).sum()).clamp(min=1e-3)
    return shares / shares.sum()
