"""Rates of sources: from moments to distributions, missing votes, and the comparison with chance.

Rates (m, K, K+1) hold P(L_j = l | Y = c); the last symbol is the abstention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

ABSTENTIONS = ("symbol", "missing")
LEAST = 1e-4  # rates from moments are at least this: moments can leave the unit interval
_EPS = 1e-12


def rates_of_moments(votes: Tensor, coverage: Tensor, abstain: str) -> Tensor:
    """Return distributions (m, K, K+1) from estimates of the rates of votes.

    Args:
        votes: (m, class, class voted for), possibly outside of [0, 1].
        coverage: (m,) share of rows for which each source votes.
        abstain: of ``ABSTENTIONS``.
    """
    votes = votes.clamp(min=LEAST)
    abstained = (1 - votes.sum(2, keepdim=True)).clamp(min=LEAST)
    abstained = torch.where((coverage < 1)[:, None, None], abstained, 0.0)
    rates = torch.cat([votes, abstained], 2)
    rates = rates / rates.sum(2, keepdim=True)
    return without_abstentions(rates, coverage) if abstain == "missing" else rates


def without_abstentions(rates: Tensor, coverage: Tensor) -> Tensor:
    """Return rates whose abstentions do not depend on the class: an abstention is then missing.

    Args:
        rates: (m, K, K+1).
        coverage: (m,) share of rows for which each source votes.
    """
    votes = rates[:, :, :-1]
    votes = votes / votes.sum(2, keepdim=True).clamp(min=_EPS)
    abstain = (1 - coverage)[:, None, None].expand(-1, rates.shape[1], 1)
    return torch.cat([coverage[:, None, None] * votes, abstain], 2)


def advantage_over_chance(prior: Tensor, rates: Tensor) -> Tensor:
    """Return (m,): P(a source votes right) minus that of a source with the same votes at random.

    Args:
        prior: (K,) class probabilities.
        rates: (m, K, K+1).
    """
    votes = rates[:, :, :-1]
    right = (prior * votes.diagonal(dim1=1, dim2=2)).sum(1)
    shares = torch.einsum("c,jcl->jl", prior, votes)
    return right - shares @ prior


def check_better_than_chance(prior: Tensor, rates: Tensor) -> None:
    """Raise if the sources together are no better than votes at random.

    Raises:
        W2SError: The sum of ``advantage_over_chance`` is not positive.
    """
    gain = advantage_over_chance(prior, rates)
    if not float(gain.sum()) > 1e-9:
        worst = int(gain.argmin())
        raise W2SError(
            f"the sources are no better than chance in sum ({float(gain.sum()):+.4f} over "
            f"{len(gain)} sources, source {worst} {float(gain[worst]):+.4f}): check the order of "
            "classes and class_balance; sources that vote one class only need abstain='symbol'"
        )
