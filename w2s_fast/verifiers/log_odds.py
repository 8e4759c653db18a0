r"""The score of Weaver: the log-odds that a response is right, given its votes or its scores.

    votes    log pi_1 / pi_0 + sum_j log R[j, 1, L_ij] / R[j, 0, L_ij]
    scores   log pi_1 / pi_0 + (mu_1 - mu_0)^T W^-1 (x_i - (mu_0 + mu_1) / 2)

R and pi are the rates and the prior of a label model with the classes 0 (wrong) and 1 (right), so
a vote adds log TPR / FPR or log FNR / TNR. For Gaussian scores, mu are the means of the classes and
W is the covariance within them. The posterior is the logistic function of the log-odds. It ranks
responses alike but rounds to 1 where many verifiers agree, and then ties responses that the
log-odds tell apart.

Source: arXiv 2506.18203; its code limits rates to [0.01, 0.99], so that no single verifier decides.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.label_models.posterior import check_distribution
from w2s_fast.label_models.votes import check_votes
from w2s_fast.verifiers.rows import check_scores, check_share, numbers

CLIP = 0.01


def weaver_log_odds(votes: Any, prior: Any, rates: Any, clip: float = CLIP) -> np.ndarray:
    """Compute the log-odds that each response is right, (N,) float64.

    Args:
        votes: (N, m) integers: 1 accepts, 0 rejects, -1 abstains.
        prior: (2,) probabilities of wrong and right, which sum to one; or that of right alone.
        rates: (m, 2, 3): ``rates[j, c, l]`` is the probability that verifier j gives a response of
            class c the vote l; the last column is the abstention. ``LabelModel.rates`` has this
            form.
        clip: Rates are limited to [clip, 1 - clip]; a rate that is exactly 0 in both classes
            therefore says nothing.

    Raises:
        W2SError: Votes, prior, rates or clip are wrong.
    """
    table = _checked_rates(rates)
    matrix = check_votes(votes, 2, len(table)).numpy()
    least = check_share("clip", clip, 0.5)
    limited = np.log(np.clip(table, least, 1 - least))
    evidence = limited[:, 1] - limited[:, 0]  # (m, symbol); symbol -1 is the last one
    # A sum per row: a product of matrices may round equal rows differently and break their ties.
    return _prior_log_odds(prior) + evidence[np.arange(len(table)), matrix].sum(1)


def gaussian_log_odds(scores: Any, prior: Any, means: Any, within: Any) -> np.ndarray:
    """Compute the log-odds that each response is right from scores that are not binarized, (N,).

    Args:
        scores: (N, m).
        prior: (2,) probabilities of wrong and right, which sum to one; or that of right alone.
        means: (2, m) mean scores of wrong and of right responses.
        within: (m, m) covariance of the scores within classes. ``GaussianScores`` has ``prior``,
            ``means`` and ``within``.

    Raises:
        W2SError: Scores, prior, means or covariance are wrong.
    """
    mu = check_scores(means)
    if len(mu) != 2:
        raise W2SError(f"means have shape {mu.shape}; expected (2, verifiers), wrong and right")
    matrix = check_scores(scores, mu.shape[1])
    covariance = check_scores(within, mu.shape[1])
    try:
        weights = np.linalg.solve(covariance, mu[1] - mu[0])
    except np.linalg.LinAlgError as e:
        raise W2SError(
            f"within has shape {covariance.shape} and is singular or not square; expected the "
            "covariance of different verifiers: drop verifiers that are sums of others"
        ) from e
    return _prior_log_odds(prior) + ((matrix - mu.mean(0)) * weights).sum(1)


def _prior_log_odds(prior: Any) -> float:
    probs = numbers("prior", prior)
    if probs.ndim == 0:
        probs = np.array([1 - probs, probs])
    wrong, right = check_distribution(probs, 2, "prior").tolist()
    return math.log(right / wrong)


def _checked_rates(rates: Any) -> np.ndarray:
    table = numbers("rates", rates)
    if table.ndim != 3 or table.shape[1:] != (2, 3) or not len(table):
        raise W2SError(
            f"rates have shape {table.shape}; expected (verifiers, 2, 3): classes wrong and right, "
            "votes reject, accept and abstain"
        )
    off = ~((table >= 0) & (table <= 1)).all(2) | (np.abs(table.sum(2) - 1) > 1e-4)
    if off.any():
        j, c = (int(i) for i in np.argwhere(off)[0])
        raise W2SError(
            f"rates[{j}, {c}] are {table[j, c].tolist()}; expected probabilities that sum to 1"
        )
    return table
