r"""MeTaL: rates that reproduce the second moments of votes, for a known class balance.

    minimise  sum_{i != j} || O_ij - mu_i P mu_j^T ||^2 + sum_j || mu_j pi - E[x_j] ||^2

x_j (K,) is the one-hot vote of source j, O = E[x x^T], mu_j (K, K) holds P(L_j = l | Y = c), and
P = diag(pi). Each step solves the least-squares problem of every mu_j given the others, and goes
halfway there; ``fixed_point`` accelerates the steps. For two classes the solution is unique up to
the order of classes. For more, mu P^1/2 may be rotated among the K - 1 directions that leave pi
alone: second moments do not decide, and a solution near the majority vote, from which the steps
start, is found.

Sources: Ratner et al. 2019, "Training complex models with multi-task weak supervision" (arXiv
1810.02840), and the label model of Snorkel, which minimises the same loss by gradient descent.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from w2s_fast.label_models._base import LabelModel
from w2s_fast.label_models._options import check_choice, check_number
from w2s_fast.label_models.fixed_point import fixed_point
from w2s_fast.label_models.jackknife import StandardErrors, jackknife, row_groups
from w2s_fast.label_models.majority import majority_start
from w2s_fast.label_models.moments import Moments, check_moments, moments
from w2s_fast.label_models.rates import ABSTENTIONS, check_better_than_chance, rates_of_moments
from w2s_fast.label_models.triplets import Triplets
from w2s_fast.label_models.votes import check_votes, one_hot


@dataclass
class MeTaL(LabelModel):
    """Fit rates to second moments by alternating least squares.

    Attributes:
        class_balance: as in every model; None estimates it by third moments (``Triplets``).
        abstain: ``"symbol"``: a source abstains depending on the class; ``"missing"``: it does not.
        tolerance: steps stop when no rate changes by more.
        max_iter: most steps.
        n_iter: steps of the last fit.
    """

    abstain: str = "symbol"
    tolerance: float = 1e-7
    max_iter: int = 1000
    n_iter: int = field(init=False, default=0)
    _moments: Moments = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("abstain", self.abstain, ABSTENTIONS)
        check_number("tolerance", self.tolerance, 0)
        check_number("max_iter", self.max_iter, 1)

    def fit(self, votes: Any) -> Self:
        """Fit rates to votes (n, m) of -1 .. K-1; return the model.

        Raises:
            W2SError: The votes are wrong, or the sources are worse than chance in sum.
        """
        matrix = check_votes(votes, self.n_classes)
        self._moments = moments(matrix, self.n_classes, across_classes=True)
        check_moments(self._moments)
        prior = self._fixed_prior(matrix)
        if prior is None:
            prior = Triplets(self.n_classes).fit(matrix).prior
        self.prior = prior
        data = one_hot(matrix, self.n_classes)
        q = majority_start(data, prior)
        counts = data.transposed_times(q).permute(1, 0, 2)  # (m, symbol, class)
        self._descend(counts / q.sum(0))
        return self

    def partial_fit(self, votes: Any) -> Self:
        """Add further rows (n, m) to the moments and go on from the rates; the first is ``fit``.

        The class balance stays that of the first call.

        Raises:
            W2SError: The votes are wrong, or the sources are worse than chance in sum.
        """
        if not hasattr(self, "rates"):
            return self.fit(votes)
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        self._moments = self._moments + moments(matrix, self.n_classes, across_classes=True)
        self._descend(self._vote_rates())
        return self

    def standard_errors(self, votes: Any) -> StandardErrors:
        """Estimate standard errors of the rates by the jackknife over 20 groups of rows.

        The class balance is held fixed, so its errors are 0.

        Args:
            votes: (n, m), the rows that were fitted.

        Raises:
            W2SError: The model is not fitted, or there are fewer than 60 rows.
        """
        self._check_fitted()
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        parts = [moments(g, self.n_classes, across_classes=True) for g in row_groups(matrix)]
        total, estimates = sum(parts[1:], parts[0]), []
        for part in parts:
            model = copy.copy(self)
            model._moments = total - part
            model._descend(self._vote_rates())
            estimates.append((model.prior, model.rates))
        return jackknife(estimates)

    def _vote_rates(self) -> Tensor:
        """Return mu of the fitted rates, (m, symbol, class)."""
        return self.rates[:, :, :-1].transpose(1, 2).contiguous()

    def _descend(self, mu: Tensor) -> None:
        """Set the rates, from a start (m, symbol, class)."""
        m, k = len(mu), self.n_classes
        means = self._moments.means.T  # (m, symbol)
        # Sources first, so that the own block of every source is a diagonal block.
        second = self._moments.second.view(k, m, k, m).permute(1, 0, 3, 2) / self._moments.n_rows
        own = range(m)
        second = second.clone()
        second[own, :, own, :] = 0
        matrix = second.reshape(m * k, m * k)
        pull, pulled = torch.outer(self.prior, self.prior), means[:, :, None] * self.prior

        def halfway(mu: Tensor) -> Tensor:
            scaled = mu * self.prior  # mu P
            gram = scaled.transpose(1, 2) @ scaled  # P mu_j^T mu_j P
            others = gram.sum(0) - gram + pull
            target = (matrix @ scaled.reshape(m * k, k)).view(m, k, k) + pulled
            new: Tensor = torch.linalg.solve(others, target, left=False)
            return (mu + new) / 2

        mu, self.n_iter = fixed_point(halfway, mu, self.tolerance, self.max_iter)
        self._set(mu)

    def _set(self, mu: Tensor) -> None:
        coverage = self._moments.means.sum(0)
        rates = rates_of_moments(mu.transpose(1, 2), coverage, self.abstain)
        check_better_than_chance(self.prior, rates)
        self.rates = rates
