r"""Dawid and Skene's model with dependent sources: a forest in place of independence.

    P(L | Y = c) = prod_{pairs (i, j)} P(L_i, L_j | c) / prod_j P(L_j | c)^(degree_j - 1)
                 = prod_{roots j} P(L_j | c) prod_{others j} P(L_j | L_parent(j), c)

The first line is the junction tree: cliques are the pairs, and separators, the sources that pairs
share, divide. The second is the same product and is what is computed: a copy of another source
contributes a factor of 1. EM estimates the factors; pairs are learned (``dependencies``) from its
posterior and again after it has converged, until they repeat. EM starts from a vote in which
copies share one weight, because from the majority vote it would take a group of copies for the
class.

Sources: Friedman, Geiger and Goldszmidt 1997, "Bayesian network classifiers" (tree-augmented naive
Bayes); with a latent class: Ratner et al. 2019 (arXiv 1810.02840), who keep cliques of any size.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from w2s_fast.errors import DataWarning
from w2s_fast.label_models._base import LabelModel
from w2s_fast.label_models._options import check_number
from w2s_fast.label_models.dawid_skene import STEP_POWER
from w2s_fast.label_models.dependencies import decorrelated_vote, learn_forest
from w2s_fast.label_models.forest import forest_joint, parents_of
from w2s_fast.label_models.independence import independence_test
from w2s_fast.label_models.jackknife import StandardErrors, jackknife, row_groups
from w2s_fast.label_models.rank_one import check_pairs
from w2s_fast.label_models.rates import check_better_than_chance
from w2s_fast.label_models.votes import check_sources, check_votes, symbols_of

MAX_ROUNDS = 10  # of learning pairs and EM
WARNING_LEVEL = 1e-3  # of the test of the forest
Pairs = tuple[tuple[int, int], ...]


@dataclass
class _Counts:
    """Expected counts: classes (K,), symbols (m, K, K+1), child -> (K, parent's, own symbol)."""

    classes: Tensor
    symbols: Tensor
    pairs: dict[int, Tensor]

    def mixed(self, new: _Counts, step: float) -> _Counts:
        """Return these counts moved towards new ones per row by ``step``, for all rows so far."""
        old_rows, new_rows = self.classes.sum(), new.classes.sum()

        def mix(old: Tensor, fresh: Tensor) -> Tensor:
            share = (1 - step) * old / old_rows + step * fresh / new_rows
            return share * (old_rows + new_rows)

        pairs = {j: mix(self.pairs[j], new.pairs[j]) for j in self.pairs}
        return _Counts(mix(self.classes, new.classes), mix(self.symbols, new.symbols), pairs)


@dataclass
class TreeDawidSkene(LabelModel):
    """Fit class balance, rates, and a forest of dependent sources by EM.

    Attributes:
        dependencies: pairs of sources of a forest; None learns them.
        smoothing: count added to every rate, and to conditional rates in proportion to the rate.
        tolerance: EM stops when no rate and no class probability changes by more.
        max_iter: most iterations of EM between two learned forests.
        pairs: the dependent pairs (i, j), after ``fit``.
        conditionals: source -> (K, K+1, K+1) float64 P(L_j = a | L_parent = b, Y = c) at [c, b, a],
            of sources with a parent, after ``fit``.
    """

    dependencies: Sequence[tuple[int, int]] | None = None
    smoothing: float = 0.01
    tolerance: float = 1e-5
    max_iter: int = 10_000
    pairs: Pairs = field(init=False, repr=False)
    conditionals: dict[int, Tensor] = field(init=False, repr=False)
    _parents: list[int] = field(init=False, repr=False)
    _counts: _Counts = field(init=False, repr=False)
    _n_steps: int = field(init=False, default=0, repr=False)
    _fixed: Tensor | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("smoothing", self.smoothing, 1e-9)
        check_number("tolerance", self.tolerance, 0)
        check_number("max_iter", self.max_iter, 1)

    def fit(self, votes: Any) -> Self:
        """Learn pairs and run EM on votes (n, m) of -1 .. K-1; return the model.

        Raises:
            W2SError: The votes or dependencies are wrong, or the sources are no better than chance.
        """
        matrix = check_votes(votes, self.n_classes)
        check_sources(matrix, self.n_classes, independent=False)
        self._fixed = self._fixed_prior(matrix)
        q = decorrelated_vote(matrix, self.n_classes)
        if self.dependencies is not None:
            check_pairs(self.dependencies, matrix.shape[1])
            self._use(tuple(sorted((min(p), max(p)) for p in self.dependencies)), matrix)
            self._run_em(matrix, q)
        else:
            self._learn(matrix, q)
        self._n_steps = 1
        check_better_than_chance(self.prior, self.rates)
        self._warn_about_other_pairs(matrix)
        return self

    def partial_fit(self, votes: Any) -> Self:
        """Take one step of stepwise EM with the pairs of the first call, which is ``fit``.

        Args:
            votes: (n, m) integers of -1 .. K-1 by the same sources.

        Raises:
            W2SError: The votes are wrong, or the sources are no better than chance in sum.
        """
        if not hasattr(self, "rates"):
            return self.fit(votes)
        symbols = symbols_of(check_votes(votes, self.n_classes, len(self.rates)), self.n_classes)
        self._n_steps += 1
        new = self._count(symbols, self._log_joint(symbols).softmax(1))
        self._maximize(self._counts.mixed(new, self._n_steps**-STEP_POWER))
        check_better_than_chance(self.prior, self.rates)
        return self

    def posterior(self, votes: Any) -> Tensor:
        """Compute P(Y = c | votes), (n, K) float64, of votes (n, m) by the fitted sources.

        Raises:
            W2SError: The model is not fitted, or the votes do not suit it.
        """
        self._check_fitted()
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        return self._log_joint(symbols_of(matrix, self.n_classes)).softmax(1)

    def pair_joint(self) -> Tensor:
        """Return P(Y = c, L_i = a, L_j = b) of the fitted model, as every model does."""
        self._check_fitted()
        return forest_joint(self.prior, self.rates, self._parents, self.conditionals)

    def standard_errors(self, votes: Any) -> StandardErrors:
        """Estimate standard errors by the jackknife over 20 groups of rows, with the fitted pairs.

        Args:
            votes: (n, m), the rows that were fitted.

        Raises:
            W2SError: The model is not fitted, or there are fewer than 60 rows.
        """
        self._check_fitted()
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        groups, estimates = row_groups(matrix), []
        for left_out in range(len(groups)):
            rows = torch.cat(groups[:left_out] + groups[left_out + 1 :])
            model = copy.copy(self)
            model._run_em(rows, self.posterior(rows))
            estimates.append((model.prior, model.rates))
        return jackknife(estimates)

    def _warn_about_other_pairs(self, votes: Tensor) -> None:
        """Warn if the votes of some pairs differ clearly from what the forest implies."""
        pairs = independence_test(self, votes, WARNING_LEVEL).pairs
        if pairs:
            named = ", ".join(map(str, pairs[:5])) + (", ..." if len(pairs) > 5 else "")
            warnings.warn(
                f"{len(pairs)} pairs of sources depend on each other beyond a forest ({named}): "
                "the posterior may be wrong; leave out sources that copy several others",
                DataWarning,
                stacklevel=3,
            )

    def _learn(self, votes: Tensor, q: Tensor) -> None:
        seen: set[Pairs] = set()
        for _ in range(MAX_ROUNDS):
            pairs = learn_forest(votes, q)
            if pairs in seen:
                break
            seen.add(pairs)
            self._use(pairs, votes)
            q = self._run_em(votes, q)

    def _use(self, pairs: Pairs, votes: Tensor) -> None:
        self.pairs, self._parents = pairs, parents_of(pairs, votes.shape[1])

    def _run_em(self, votes: Tensor, q: Tensor) -> Tensor:
        """Run EM on the distinct rows of votes from q (n, K); return the posterior (n, K)."""
        distinct, which, times = torch.unique(votes, dim=0, return_inverse=True, return_counts=True)
        symbols = symbols_of(distinct, self.n_classes)
        weights = torch.zeros(len(distinct), self.n_classes, dtype=torch.float64)
        self._maximize(self._count(symbols, weights.index_add_(0, which, q)))
        for _ in range(self.max_iter):
            prior, rates = self.prior, self.rates
            weights = self._log_joint(symbols).softmax(1) * times[:, None]
            self._maximize(self._count(symbols, weights))
            change = max((self.prior - prior).abs().max(), (self.rates - rates).abs().max())
            if change <= self.tolerance:
                break
        return (weights / times[:, None])[which]

    def _count(self, symbols: Tensor, weights: Tensor) -> _Counts:
        """Return expected counts of symbols (n, m) with weights (n, K)."""
        s = self.n_classes + 1
        rates = torch.stack([_sum_by(column, weights, s) for column in symbols.T])
        pairs = {
            j: _sum_by(symbols[:, p] * s + symbols[:, j], weights, s * s).view(-1, s, s)
            for j, p in enumerate(self._parents)
            if p >= 0
        }
        return _Counts(weights.sum(0), rates, pairs)

    def _maximize(self, counts: _Counts) -> None:
        """Set prior, rates and conditionals from expected counts."""
        self._counts = counts
        totals = counts.classes + self.smoothing
        self.prior = totals / totals.sum() if self._fixed is None else self._fixed
        smoothed = counts.symbols + self.smoothing
        self.rates = smoothed / smoothed.sum(2, keepdim=True)
        self.conditionals = {}
        for j, pair in counts.pairs.items():
            table = pair + self.smoothing * self.rates[j][:, None, :]
            self.conditionals[j] = table / table.sum(2, keepdim=True)

    def _log_joint(self, symbols: Tensor) -> Tensor:
        """Return log P(Y = c, L) of every row, (n, K)."""
        s = self.n_classes + 1
        total = self.prior.log().expand(len(symbols), -1).clone()
        for j, p in enumerate(self._parents):
            table, codes = self.rates[j], symbols[:, j]
            if p >= 0:
                table, codes = self.conditionals[j].flatten(1), symbols[:, p] * s + symbols[:, j]
            total += table.log().T[codes]
        return total


def _sum_by(codes: Tensor, weights: Tensor, n_codes: int) -> Tensor:
    """Return (K, n_codes): sums of weights (n, K) over the rows of each code."""
    return weights.new_zeros(n_codes, weights.shape[1]).index_add_(0, codes, weights).T
