r"""Rates in closed form from second moments, class balance from third moments.

For two classes and x = 1[L_j = l] of any source and symbol, with pi = P(Y = 1) and
delta = P(x | Y = 1) - P(x | Y = 0), sources that are independent given the class have

    cov(x, x') = pi (1 - pi) delta delta'                                  = a a'
    E[z z' z''] = pi (1 - pi) (1 - 2 pi) delta delta' delta'' = kappa a a' a''
    kappa = (1 - 2 pi) / sqrt(pi (1 - pi)),   pi = (1 - kappa / sqrt(4 + kappa^2)) / 2
    P(x | Y = 1) = E[x] + (1 - pi) delta,   P(x | Y = 0) = E[x] - pi delta.

a is the masked rank-one fit of ``rank_one``. Both symbols of a source are used, and pairs of
different symbols too, so a source may vote one class only. With K > 2 classes the equations hold
for each class against the rest if errors are spread evenly over the wrong classes; otherwise the
rates are approximate and ``DawidSkene`` is the consistent choice.

Sources: Fu et al. 2020 (arXiv 2002.11955); centred by covariances, because the original needs
balanced classes; the prior: third moments as in Anandkumar et al. 2014 (arXiv 1210.7559).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from w2s_fast.label_models._base import LabelModel
from w2s_fast.label_models._options import check_choice
from w2s_fast.label_models.jackknife import StandardErrors, jackknife, row_groups
from w2s_fast.label_models.moments import (
    Moments,
    ThirdMoment,
    check_moments,
    class_one_share,
    moments,
    third_moment,
)
from w2s_fast.label_models.rank_one import pair_mask, rank_one
from w2s_fast.label_models.rates import (
    ABSTENTIONS,
    LEAST,
    check_better_than_chance,
    rates_of_moments,
)
from w2s_fast.label_models.votes import check_votes


@dataclass
class _Sums:
    second: Moments
    third: ThirdMoment | None

    def __add__(self, other: _Sums) -> _Sums:
        third = None if self.third is None or other.third is None else self.third + other.third
        return _Sums(self.second + other.second, third)

    def __sub__(self, other: _Sums) -> _Sums:
        third = None if self.third is None or other.third is None else self.third - other.third
        return _Sums(self.second - other.second, third)


@dataclass
class Triplets(LabelModel):
    """Solve for rates and class balance in closed form.

    Attributes:
        abstain: ``"symbol"``: a source abstains depending on the class; ``"missing"``: it does not.
        dependencies: pairs of sources that are not independent given the class; their covariance
            is left out.
    """

    abstain: str = "symbol"
    dependencies: Sequence[tuple[int, int]] = ()
    _sums: _Sums = field(init=False, repr=False)
    _weights: Tensor = field(init=False, repr=False)
    _fixed: Tensor | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("abstain", self.abstain, ABSTENTIONS)

    def fit(self, votes: Any) -> Self:
        """Solve for prior and rates of votes (n, m) of -1 .. K-1; return the model.

        Raises:
            W2SError: The votes are wrong, or the sources are worse than chance in sum.
        """
        matrix = check_votes(votes, self.n_classes)
        second = self._second(matrix)
        check_moments(second)
        self._fixed = self._fixed_prior(matrix)
        if self._fixed is None:
            self._weights = self._score_weights(second)
        self._sums = _Sums(second, self._third(matrix))
        self._set(self._sums)
        return self

    def partial_fit(self, votes: Any) -> Self:
        """Add further rows (n, m) to the moments and solve again; the first call is ``fit``.

        Raises:
            W2SError: The votes are wrong, or the sources are worse than chance in sum.
        """
        if not hasattr(self, "rates"):
            return self.fit(votes)
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        self._sums = self._sums + _Sums(self._second(matrix), self._third(matrix))
        self._set(self._sums)
        return self

    def standard_errors(self, votes: Any) -> StandardErrors:
        """Estimate standard errors by the jackknife that leaves out one of 20 groups of rows.

        Args:
            votes: (n, m), the rows that were fitted, or as many.

        Raises:
            W2SError: The model is not fitted, or there are fewer than 60 rows.
        """
        self._check_fitted()
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        parts = [_Sums(self._second(g), self._third(g)) for g in row_groups(matrix)]
        total = sum(parts[1:], parts[0])
        return jackknife([self._solve(total - part) for part in parts])

    def _second(self, votes: Tensor) -> Moments:
        return moments(votes, self.n_classes, across_classes=self.n_classes == 2)

    def _third(self, votes: Tensor) -> ThirdMoment | None:
        if self._fixed is not None:
            return None
        return third_moment(votes, self._weights, pooled=self.n_classes == 2)

    def _set(self, sums: _Sums) -> None:
        prior, rates = self._solve(sums)
        check_better_than_chance(prior, rates)
        self.prior, self.rates = prior, rates

    def _score_weights(self, second: Moments) -> Tensor:
        """Return weights (K, m) of scores in third moments: informative units count most."""
        means = second.means
        return self._loadings(second) / (means * (1 - means)).clamp(min=LEAST)

    def _loadings(self, second: Moments) -> Tensor:
        """Return a (K, m): covariances are products of a."""
        k, m = second.first.shape
        mask = pair_mask(self.dependencies, m)
        covariance = second.covariance()
        if k > 2:
            ones = torch.ones(m, dtype=torch.float64)
            return torch.stack([rank_one(c, mask, ones) for c in covariance])
        signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(m)
        return rank_one(covariance, mask.repeat(2, 2), signs).view(2, m)

    def _solve(self, sums: _Sums) -> tuple[Tensor, Tensor]:
        """Return prior (K,) and rates (m, K, K+1)."""
        loadings = self._loadings(sums.second)
        prior = self._balance(sums.third, loadings) if self._fixed is None else self._fixed
        means = sums.second.means
        if self.n_classes == 2:
            delta = loadings / (prior[0] * prior[1]).sqrt()  # P(x | 1) - P(x | 0)
            votes = torch.stack([means - prior[1] * delta, means + prior[0] * delta])
        else:
            delta = loadings / (prior * (1 - prior)).sqrt()[:, None]  # P(x | c) - P(x | not c)
            votes = (means - prior[:, None] * delta).repeat(self.n_classes, 1, 1)
            own = range(self.n_classes)
            votes[own, own] = means + (1 - prior)[:, None] * delta
        return prior, rates_of_moments(votes.permute(2, 0, 1), means.sum(0), self.abstain)

    def _balance(self, third: ThirdMoment | None, loadings: Tensor) -> Tensor:
        assert third is not None
        scores = self._weights * loadings
        if self.n_classes == 2:
            scores = scores.sum(0, keepdim=True)
        share = class_one_share(third, scores)
        return torch.cat([1 - share, share]) if self.n_classes == 2 else share / share.sum()
