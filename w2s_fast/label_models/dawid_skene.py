r"""Dawid and Skene's model, fitted by EM in log space.

    E:  q_ic ~ pi_c prod_j R[j, c, L_ij]
    M:  pi_c = mean_i q_ic,    R[j, c, l] ~ sum_i q_ic 1[L_ij = l] + A[j, c, l]

R has K symbols and the abstention (``abstain="symbol"``), or abstentions are missing at random
(``"missing"``): then rates of votes are relative to the coverage, rows without votes do not enter
pi, and sources that vote one class only carry no information, as their vote was certain. One-coin
rates have one accuracy a_j a source, and errors spread evenly over the other classes.

EM starts from the majority vote; rows without votes start from the class balance of the others.
From equal classes it would often end at two classes of which one is "has no votes".

A is a Dirichlet prior that keeps sources with few votes near an assumed precision p: ``anchor``
votes, in the source's own mixture of classes, of which a share p was right,

    A[j, c, l] = s + anchor (votes of j for l / votes of j) (p if c = l else (1 - p) / (K - 1)).

Sources: Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM
algorithm"; one coin: Zhang et al. 2014 (arXiv 1406.3824); ``partial_fit``: stepwise EM with steps
(t + 1)^-0.6, Cappé and Moulines 2009 (arXiv 0712.4273).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from w2s_fast.label_models._base import LabelModel
from w2s_fast.label_models._options import check_choice, check_number
from w2s_fast.label_models.fit_warnings import warn_about_disagreement, warn_about_uncovered
from w2s_fast.label_models.jackknife import StandardErrors
from w2s_fast.label_models.likelihood_errors import likelihood_errors
from w2s_fast.label_models.majority import majority_start
from w2s_fast.label_models.posterior import class_posterior
from w2s_fast.label_models.rates import ABSTENTIONS, check_better_than_chance, without_abstentions
from w2s_fast.label_models.votes import (
    OneHotVotes,
    check_sources,
    check_votes,
    covered_rows,
    one_hot,
)

STEP_POWER = 0.6  # of stepwise EM; Cappé and Moulines: above 0.5, at most 1


@dataclass
class Counts:
    """Expected counts: the sufficient statistics of EM.

    Attributes:
        classes: (K,) rows of each class.
        votes: (K, m, K) votes: symbol, source, class.
        n_rows: rows that were counted.
    """

    classes: Tensor
    votes: Tensor
    n_rows: float

    def mixed(self, new: Counts, step: float) -> Counts:
        """Return these counts moved towards new ones per row by ``step``, for all rows so far."""
        n = self.n_rows + new.n_rows

        def mix(old: Tensor, fresh: Tensor) -> Tensor:
            return n * ((1 - step) * old / self.n_rows + step * fresh / new.n_rows)

        return Counts(mix(self.classes, new.classes), mix(self.votes, new.votes), n)


@dataclass
class DawidSkene(LabelModel):
    """Fit class balance and a confusion matrix per source by EM.

    Attributes:
        abstain: ``"symbol"``: a source abstains depending on the class; ``"missing"``: it does not.
        one_coin: one accuracy per source.
        anchor: prior votes of every source, of which ``precision`` are right; 0 is none.
        precision: of the prior votes.
        smoothing: count added to every symbol of every class, above 0.
        tolerance: EM stops when no rate and no class probability changes by more.
        max_iter: most iterations.
        n_iter: iterations of the last fit.
    """

    abstain: str = "symbol"
    one_coin: bool = False
    anchor: float = 0.0
    precision: float = 0.8
    smoothing: float = 0.01
    tolerance: float = 1e-6
    max_iter: int = 10_000
    n_iter: int = field(init=False, default=0)
    _counts: Counts = field(init=False, repr=False)
    _fixed: Tensor | None = field(init=False, default=None, repr=False)
    _n_steps: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("abstain", self.abstain, ABSTENTIONS)
        check_number("anchor", self.anchor, 0)
        check_number("precision", self.precision, 0, 1)
        check_number("smoothing", self.smoothing, 1e-9)
        check_number("tolerance", self.tolerance, 0)
        check_number("max_iter", self.max_iter, 1)

    def fit(self, votes: Any) -> Self:
        """Run EM from the majority vote; return the model.

        A ``DataWarning`` tells if a quarter of the rows have no vote and what these rows get, and
        if the fitted classes are hardly those of the votes.

        Args:
            votes: (n, m) integers of -1 .. K-1, with at least three sources that vary.

        Raises:
            W2SError: The votes are wrong, or the sources are worse than chance in sum.
        """
        matrix = check_votes(votes, self.n_classes)
        n_covered = check_sources(matrix, self.n_classes)
        data = self._data(matrix)
        self._fixed = self._fixed_prior(matrix)
        start = majority_start(data, self._fixed)
        self._maximize(self._count(data, start))
        for iteration in range(1, self.max_iter + 1):
            self.n_iter = iteration
            prior, rates = self.prior, self.rates
            q = class_posterior(data, prior, rates)
            self._maximize(self._count(data, q))
            change = max((self.prior - prior).abs().max(), (self.rates - rates).abs().max())
            if change <= self.tolerance:
                break
        self._n_steps = 1
        check_better_than_chance(self.prior, self.rates)
        warn_about_disagreement(data.votes, start, q)
        no_vote = self.posterior(torch.full((1, len(self.rates)), -1))[0]
        missing = self.abstain == "missing"
        warn_about_uncovered(len(matrix) - n_covered, len(matrix), no_vote, missing=missing)
        return self

    def partial_fit(self, votes: Any) -> Self:
        """Take one step of stepwise EM on further rows; the first call is ``fit``.

        Args:
            votes: (n, m) integers of -1 .. K-1 by the same sources.

        Raises:
            W2SError: The votes are wrong, or the sources are worse than chance in sum.
        """
        if not hasattr(self, "rates"):
            return self.fit(votes)
        data = self._data(check_votes(votes, self.n_classes, len(self.rates)))
        new = self._count(data, class_posterior(data, self.prior, self.rates))
        self._n_steps += 1
        self._maximize(self._counts.mixed(new, self._n_steps**-STEP_POWER))
        check_better_than_chance(self.prior, self.rates)
        return self

    def standard_errors(self, votes: Any) -> StandardErrors:
        """Estimate standard errors of prior and rates from the votes that were fitted.

        Raises:
            W2SError: The model is not fitted or is one-coin, or has too many parameters.
        """
        self._check_fitted()
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        return likelihood_errors(
            self._data(matrix), self.prior, self.rates,
            missing=self.abstain == "missing", one_coin=self.one_coin,
            fixed_prior=self._fixed is not None,
        )  # fmt: skip

    def _data(self, votes: Tensor) -> OneHotVotes:
        """Return the rows that enter the likelihood."""
        if self.abstain == "missing":
            votes = votes[covered_rows(votes)]
        return one_hot(votes, self.n_classes)

    def _count(self, data: OneHotVotes, q: Tensor) -> Counts:
        return Counts(q.new_ones(len(q)) @ q, data.transposed_times(q), len(data))

    def _maximize(self, counts: Counts) -> None:
        """Set prior and rates from expected counts."""
        self._counts = counts
        smoothed = counts.classes + self.smoothing
        self.prior = smoothed / smoothed.sum() if self._fixed is None else self._fixed
        self.rates = self._rates(counts)

    def _rates(self, counts: Counts) -> Tensor:
        votes = counts.votes.permute(1, 2, 0)  # (m, class, symbol)
        cast = votes.sum((1, 2))
        abstained = (counts.classes - votes.sum(2)).clamp(min=0)
        mixture = votes.sum(1) / cast.clamp(min=1)[:, None]
        votes = votes + self.anchor * mixture[:, None, :] * self._precisions()
        if self.one_coin:
            votes = _one_coin(votes)
        votes = votes + self.smoothing
        coverage = cast / counts.n_rows
        if self.abstain == "missing":
            return without_abstentions(torch.cat([votes, abstained[:, :, None]], 2), coverage)
        # Prior votes come with as many abstentions as the source has for a vote.
        prior_rows = self.anchor * (1 - coverage) / coverage.clamp(min=1 / counts.n_rows)
        abstained = abstained + prior_rows[:, None] * self.prior + self.smoothing
        symbols = torch.cat([votes, abstained[:, :, None]], 2)
        if self.one_coin:
            return without_abstentions(symbols, coverage)
        return symbols / symbols.sum(2, keepdim=True).clamp(min=1e-300)

    def _precisions(self) -> Tensor:
        k = self.n_classes
        wrong = torch.full((k, k), (1 - self.precision) / (k - 1), dtype=torch.float64)
        return wrong.fill_diagonal_(self.precision)


def _one_coin(votes: Tensor) -> Tensor:
    """Return counts (m, K, K) with one accuracy a source and evenly spread errors."""
    k = votes.shape[1]
    right = votes.diagonal(dim1=1, dim2=2).sum(1)
    wrong = votes.sum((1, 2)) - right
    eye = torch.eye(k, dtype=votes.dtype)
    return (right[:, None, None] * eye + wrong[:, None, None] * (1 - eye) / (k - 1)) / k
