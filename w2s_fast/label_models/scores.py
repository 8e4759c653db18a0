r"""Continuous scores of two classes: Gaussian naive Bayes without labels, in closed form.

With x_j the score of source j, delta_j = E[x_j | Y = 1] - E[x_j | Y = 0] and pi = P(Y = 1):

    cov(x_i, x_j) = pi (1 - pi) delta_i delta_j            sources independent given the class
    W = Cov(x | Y) = Cov(x) - pi (1 - pi) delta delta^T    its diagonal, and dependent pairs
    log P(Y = 1 | x) / P(Y = 0 | x) = log pi / (1 - pi) + delta^T W^-1 (x - (mu_0 + mu_1) / 2)

delta comes from the masked rank-one fit, pi from third moments, as in ``Triplets``. The score
delta^T W^-1 x ranks rows as the best linear predictor Cov(y, x) Cov(x)^-1 x does; the Gaussian
link makes it a probability.

Sources: continuous verifiers, Saad-Falcon et al. 2025 (arXiv 2506.18203); the discriminant: Fisher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._base import uniform
from w2s_fast.label_models._options import check_choice
from w2s_fast.label_models.jackknife import jackknife, row_groups
from w2s_fast.label_models.moments import Moments, ThirdMoment, class_one_share, third_of
from w2s_fast.label_models.posterior import check_distribution
from w2s_fast.label_models.rank_one import pair_mask, rank_one
from w2s_fast.label_models.votes import MIN_SOURCES, as_cpu_tensor

_RIDGE = 1e-6  # of the variances within classes: exact copies have a singular covariance
_LEAST_WITHIN = 1e-3  # share of a variance that is within classes, at least


class ScoreErrors(NamedTuple):
    """Standard errors: ``prior`` (2,), 0 where it was given, and ``means`` (2, m)."""

    prior: Tensor
    means: Tensor


def check_scores(scores: Any, n_sources: int | None = None) -> Tensor:
    """Check scores and convert them to a float64 tensor (n, m).

    Raises:
        W2SError: Wrong shape, or a score that is no finite number.
    """
    matrix = as_cpu_tensor(scores, "scores cannot be read as numbers (n, m)").double()
    return check_score_matrix(matrix, n_sources)


def check_score_matrix(
    matrix: Tensor, n_sources: int | None = None, *, row: str = "row", source: str = "source"
) -> Tensor:
    """Return a float64 tensor (n, m) if it is a matrix of finite scores.

    Args:
        matrix: (n, m).
        n_sources: m of the model or of other scores; None accepts any.
        row: what a row is, for messages.
        source: what a column is.

    Raises:
        W2SError: Wrong shape, or a score that is no finite number.
    """
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise W2SError(
            f"scores have shape {tuple(matrix.shape)}; expected ({row}s, {source}s), neither of "
            f"them 0: reshape further axes to (-1, {source}s)"
        )
    if n_sources is not None and matrix.shape[1] != n_sources:
        raise W2SError(
            f"scores have {matrix.shape[1]} {source}s; expected {n_sources}: pass the same "
            f"{source}s in the same order"
        )
    bad = ~matrix.isfinite()
    if bool(bad.any()):
        i, j = bad.nonzero()[0].tolist()
        raise W2SError(
            f"score of {source} {j} for row {i} is {float(matrix[i, j])}, one of {int(bad.sum())} "
            f"that are not finite; score these {row}s again, drop the rows or the {source}, or "
            "turn scores into votes with abstentions"
        )
    return matrix


@dataclass
class GaussianScores:
    """Fit class means and the covariance within classes to unlabelled scores.

    Attributes:
        class_balance: (2,) class probabilities, ``"uniform"``, or None: estimate them.
        dependencies: pairs of sources that are not independent given the class.
        prior: (2,) float64, after ``fit``.
        means: (2, m) float64 means of the scores in each class, after ``fit``.
        within: (m, m) float64 covariance within classes, 0 for independent pairs, after ``fit``.
    """

    class_balance: Any = None
    dependencies: Sequence[tuple[int, int]] = ()
    prior: Tensor = field(init=False, repr=False)
    means: Tensor = field(init=False, repr=False)
    within: Tensor = field(init=False, repr=False)
    _second: Moments = field(init=False, repr=False)
    _third: ThirdMoment = field(init=False, repr=False)
    _weights: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._fixed_prior()

    def fit(self, scores: Any) -> Self:
        """Solve for prior, means and covariance of scores (n, m), larger for class 1.

        Args:
            scores: (n, m) finite numbers of at least three sources.

        Raises:
            W2SError: The scores are wrong, constant, or agree less often than chance.
        """
        x = check_scores(scores)
        if x.shape[1] < MIN_SOURCES:
            raise W2SError(f"{x.shape[1]} sources; expected at least {MIN_SOURCES}")
        constant = (x == x[0]).all(0)
        if bool(constant.any()):
            source = int(constant.nonzero()[0])
            raise W2SError(f"source {source} has the same score in every row; leave it out")
        self._second = _sums(x)
        variances = self._second.covariance().diagonal()
        self._weights = self._loadings(self._second) / variances
        self._third = third_of(x, self._weights)
        self._set()
        return self

    def partial_fit(self, scores: Any) -> Self:
        """Add further rows (n, m) to the moments and solve again; the first call is ``fit``.

        Raises:
            W2SError: The scores are wrong, or agree less often than chance.
        """
        if not hasattr(self, "means"):
            return self.fit(scores)
        x = check_scores(scores, self.means.shape[1])
        self._second = self._second + _sums(x)
        self._third = self._third + third_of(x, self._weights)
        self._set()
        return self

    def posterior(self, scores: Any) -> Tensor:
        """Compute P(Y = c | scores), (n, 2) float64, of scores (n, m) by the fitted sources.

        Raises:
            W2SError: The model is not fitted, or the scores do not suit it.
        """
        self._check_fitted()
        x = check_scores(scores, self.means.shape[1])
        weights = torch.linalg.solve(self.within, self.means[1] - self.means[0])
        log_odds = (x - self.means.mean(0)) @ weights + (self.prior[1] / self.prior[0]).log()
        return torch.stack([-log_odds, log_odds], 1).sigmoid()

    def standard_errors(self, scores: Any) -> ScoreErrors:
        """Estimate standard errors by the jackknife over 20 groups of the rows that were fitted.

        Raises:
            W2SError: The model is not fitted, or there are fewer than 60 rows.
        """
        self._check_fitted()
        groups = row_groups(check_scores(scores, self.means.shape[1]))
        parts = [(_sums(g), third_of(g, self._weights)) for g in groups]
        second = sum((p[0] for p in parts[1:]), parts[0][0])
        third = sum((p[1] for p in parts[1:]), parts[0][1])
        solved = [self._solve(second - a, third - b)[:2] for a, b in parts]
        return ScoreErrors(*jackknife(solved))

    def _check_fitted(self) -> None:
        if not hasattr(self, "means"):
            raise W2SError("GaussianScores has no means yet; call fit(scores) first")

    def _fixed_prior(self) -> Tensor | None:
        if isinstance(self.class_balance, str):
            check_choice("class_balance", self.class_balance, ("uniform",))
            return uniform(2)
        return None if self.class_balance is None else check_distribution(self.class_balance, 2)

    def _mask(self, n_sources: int) -> Tensor:
        return pair_mask(self.dependencies, n_sources)

    def _loadings(self, second: Moments) -> Tensor:
        """Return a (m,): covariances of independent pairs are products of a."""
        covariance = second.covariance()
        spread = covariance.diagonal().sqrt()
        correlation = covariance / torch.outer(spread, spread)
        m = len(spread)
        return spread * rank_one(correlation, self._mask(m), torch.ones(m, dtype=torch.float64))

    def _set(self) -> None:
        self.prior, self.means, self.within = self._solve(self._second, self._third)

    def _solve(self, second: Moments, third: ThirdMoment) -> tuple[Tensor, Tensor, Tensor]:
        loadings, fixed = self._loadings(second), self._fixed_prior()
        prior = fixed
        if prior is None:
            share = class_one_share(third, (self._weights * loadings)[None])
            prior = torch.cat([1 - share, share])
        delta = loadings / (prior[0] * prior[1]).sqrt()
        overall = second.first[0] / second.n_rows
        means = torch.stack([overall - prior[1] * delta, overall + prior[0] * delta])
        covariance = second.covariance()
        variances = covariance.diagonal()
        within = (covariance - torch.outer(loadings, loadings)) * (1 - self._mask(len(delta)))
        floored = torch.maximum(within.diagonal(), _LEAST_WITHIN * variances) + _RIDGE * variances
        return prior, means, within - torch.diag(within.diagonal()) + torch.diag(floored)


def _sums(x: Tensor) -> Moments:
    return Moments(len(x), x.sum(0, keepdim=True), x.T @ x)
