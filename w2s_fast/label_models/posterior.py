r"""Class posteriors in log space, for sources that err independently given the class.

    log P(Y = c, L) = log pi_c + sum_j log R[j, c, L_j]

R (m, K, K+1) holds the rates: R[j, c, l] = P(L_j = l | Y = c), with the abstention as last symbol.
A source whose abstentions do not depend on the class has a constant last column, which cancels:
then an abstention is a missing vote. Sums of logarithms do not underflow with many sources.

Source: Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM
algorithm", equation 2.5.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models.votes import (
    OneHotVotes,
    as_cpu_tensor,
    check_classes,
    check_votes,
    one_hot,
)

SUM_TOLERANCE = 1e-4  # of distributions that a user passes; rounded decimals sum to one within it
FLOOR = 1e-12  # of probabilities, before their logarithm


def check_distribution(values: Any, n_classes: int, name: str = "class_balance") -> Tensor:
    """Return class probabilities (K,) as float64.

    Raises:
        W2SError: Wrong length, a value outside of (0, 1), or a sum other than one.
    """
    what = f"{name} {values!r} cannot be read as {n_classes} probabilities"
    probs = as_cpu_tensor(values, what).double()
    if probs.shape != (n_classes,):
        raise W2SError(f"{name} has shape {tuple(probs.shape)}; expected ({n_classes},)")
    inside = (probs > 0) & (probs < 1)  # false for NaN
    if not bool(inside.all()):
        at = int((~inside).nonzero()[0])
        raise W2SError(f"{name}[{at}] is {float(probs[at])}; expected a probability in (0, 1)")
    if abs(float(probs.sum()) - 1) > SUM_TOLERANCE:
        raise W2SError(f"{name} sums to {float(probs.sum()):.6g}; expected 1: divide by the sum")
    return probs / probs.sum()


def class_posterior(votes: OneHotVotes, prior: Tensor, rates: Tensor) -> Tensor:
    """Return P(Y = c | L) of every row, (n, K) float64.

    Args:
        votes: n rows of m sources.
        prior: (K,) class probabilities.
        rates: (m, K, K+1), see the module.
    """
    log_rates = rates.clamp(min=FLOOR).log()
    abstain = log_rates[:, :, -1]
    # Every source abstains unless it votes, so a pass visits only the votes that were cast.
    votes_table = (log_rates[:, :, :-1] - abstain[:, :, None]).permute(2, 0, 1)
    return votes.times(votes_table.contiguous(), prior.log() + abstain.sum(0), softmax=True)


def posterior(votes: Any, prior: Any, rates: Any) -> Tensor:
    """Compute P(Y = c | votes) of every row, (n, K) float64.

    Args:
        votes: (n, m) integers of -1 .. K-1.
        prior: (K,) class probabilities.
        rates: (m, K, K+1): ``rates[j, c, l]`` is the probability that source j gives symbol l to a
            row of class c; the last symbol is the abstention.

    Raises:
        W2SError: Votes, prior or rates have a wrong shape or values.
    """
    rates = as_cpu_tensor(rates, "rates cannot be read as numbers (sources, K, K+1)").double()
    if rates.ndim != 3 or rates.shape[2] != rates.shape[1] + 1:
        raise W2SError(
            f"rates have shape {tuple(rates.shape)}; expected (sources, K, K+1), abstention last"
        )
    n_classes = check_classes(rates.shape[1])
    outside = ~((rates >= 0) & (rates <= 1))
    if bool(outside.any()):
        j, c, s = outside.nonzero()[0].tolist()
        raise W2SError(f"rates[{j}, {c}, {s}] is {float(rates[j, c, s])}; expected 0 to 1")
    off = (rates.sum(2) - 1).abs() > SUM_TOLERANCE
    if bool(off.any()):
        j, c = off.nonzero()[0].tolist()
        raise W2SError(f"rates[{j}, {c}] sum to {float(rates[j, c].sum()):.6g}; expected 1")
    matrix = check_votes(votes, n_classes, len(rates))
    probs = check_distribution(prior, n_classes, "prior")
    return class_posterior(one_hot(matrix, n_classes), probs, rates)
