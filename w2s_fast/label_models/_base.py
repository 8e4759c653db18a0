"""What all label models share: a class balance, rates, and the posterior that follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._options import check_choice
from w2s_fast.label_models.majority import BALANCES, majority_balance
from w2s_fast.label_models.posterior import check_distribution, class_posterior
from w2s_fast.label_models.votes import check_classes, check_votes, one_hot


@dataclass
class LabelModel(ABC):
    """Estimate how sources vote given the class, and from it the class of every row.

    Attributes:
        n_classes: K.
        class_balance: (K,) class probabilities; ``"uniform"``; ``"majority"``, that of the majority
            vote over rows with votes; or None: estimate them.
        prior: (K,) float64 class probabilities, after ``fit``.
        rates: (m, K, K+1) float64, after ``fit``: ``rates[j, c, l]`` is the probability that source
            j gives symbol l to a row of class c; the last symbol is the abstention.
    """

    n_classes: int
    class_balance: Any = None
    prior: Tensor = field(init=False, repr=False)
    rates: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_classes(self.n_classes)
        if isinstance(self.class_balance, str):
            check_choice("class_balance", self.class_balance, BALANCES)
        elif self.class_balance is not None:
            check_distribution(self.class_balance, self.n_classes)

    @abstractmethod
    def fit(self, votes: Any) -> Self:
        """Estimate prior and rates from votes (n, m) of -1 .. K-1; return the model."""

    def posterior(self, votes: Any) -> Tensor:
        """Compute P(Y = c | votes), (n, K) float64, of votes (n, m) by the fitted sources.

        Raises:
            W2SError: The model is not fitted, or the votes do not suit it.
        """
        self._check_fitted()
        matrix = check_votes(votes, self.n_classes, len(self.rates))
        return class_posterior(one_hot(matrix, self.n_classes), self.prior, self.rates)

    def pair_joint(self) -> Tensor:
        """Return P(Y = c, L_i = a, L_j = b) of the fitted model at [c, i, a, j, b], float64.

        The shape is (K, m, K+1, m, K+1), the abstention is the last symbol, and entries of a source
        with itself have no meaning.
        """
        self._check_fitted()
        rates = self.rates.transpose(0, 1)
        return torch.einsum("c,cia,cjb->ciajb", self.prior, rates, rates)

    def _check_fitted(self) -> None:
        if not hasattr(self, "rates"):
            raise W2SError(f"{type(self).__name__} has no rates yet; call fit(votes) first")

    def _fixed_prior(self, votes: Tensor) -> Tensor | None:
        """Return the class balance (K,) that the options fix for checked votes, or None."""
        if self.class_balance is None:
            return None
        if not isinstance(self.class_balance, str):
            return check_distribution(self.class_balance, self.n_classes)
        if self.class_balance == "majority":
            return majority_balance(votes, self.n_classes)
        return uniform(self.n_classes)


def uniform(n_classes: int) -> Tensor:
    """Return equal class probabilities (K,), float64."""
    return torch.full((n_classes,), 1 / n_classes, dtype=torch.float64)
