r"""Drop verifiers that repeat others: greedily, until no two of them depend given the class.

    W = Cov(x) - pi (1 - pi) delta delta^T,    r_ij = W_ij / sqrt(W_ii W_jj)

x_j is 1 where verifier j accepts, delta_j = P(x_j | right) - P(x_j | wrong), and pi the share of
right responses. W is the covariance within classes; verifiers that err independently have r = 0.
While any |r_ij| is above the limit, of the pair with the largest one the verifier with the smaller
|delta_j| / sqrt(W_jj) is dropped. pi and delta come from a label model without true labels, or from
``gold``.

Weaver (arXiv 2506.18203) takes the subset of k verifiers whose inverse of Cov(x, y) has the
smallest largest entry; that block is the inverse of W. Its code tries all subsets and needs y, the
true labels. The greedy choice costs O(m^3) instead and may differ. It compares entries of W, not of
its inverse, because several copies hide one another in the inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.label_models import TreeDawidSkene
from w2s_fast.label_models.votes import MIN_SOURCES
from w2s_fast.verifiers.filtering import check_acceptances
from w2s_fast.verifiers.rows import check_gold, check_share

_ROUNDS = 4  # of label model and choice
_LEAST_VARIANCE = 1e-12  # of a verifier within classes, which is 0 if it is never wrong


def keep_independent(
    votes: Any, *, limit: float = 0.2, model: Any = None, gold: Any = None
) -> np.ndarray:
    """Return which verifiers to keep, (m,) bool, such that those kept err independently.

    Args:
        votes: (N, m) of -1, 0 and 1.
        limit: Largest correlation of two verifiers within classes, in (0, 1). The standard error of
            a correlation is about one over the root of N.
        model: Label model of two classes fitted to the votes, for ``pi`` and ``delta``; None fits
            ``TreeDawidSkene``, which copies mislead less than a model of independence, and fits it
            again to the verifiers that are kept until they stay the same.
        gold: (N,) true labels, instead of a model: True or 1 for a right response.

    Raises:
        W2SError: Votes, limit, model or gold are wrong, both of the latter are given, or a label
            model cannot be fitted.
    """
    matrix = check_acceptances(votes)
    limit = check_share("limit", limit)
    if gold is not None:
        if model is not None:
            raise W2SError("model and gold are both given; expected one of them, or neither")
        share, delta = _of_gold(matrix, check_gold(gold, len(matrix)))
    elif model is not None:
        share, delta = _of_model(model, matrix.shape[1])
    else:
        return _without_labels(matrix, limit)
    return _independent(matrix, share, delta, limit)


def _without_labels(votes: np.ndarray, limit: float) -> np.ndarray:
    """Fit a label model to the verifiers that are kept, and choose again from all of them."""
    keep = np.ones(votes.shape[1], dtype=bool)
    for _ in range(_ROUNDS):
        kept = votes[:, keep].astype(np.int8)
        fitted = TreeDawidSkene(2).fit(kept)
        right = fitted.posterior(kept)[:, 1].numpy()
        # Cov(x, q) = delta Var(q) for verifiers that have no part in q, a calibrated P(right).
        delta = (right - right.mean()) @ (votes == 1) / (len(right) * right.var())
        share, delta[keep] = _of_model(fitted, kept.shape[1])
        before, keep = keep, _independent(votes, share, delta, limit)
        if (before == keep).all() or keep.sum() < MIN_SOURCES:
            break
    return keep


def _independent(votes: np.ndarray, share: float, delta: np.ndarray, limit: float) -> np.ndarray:
    within = np.cov((votes == 1).T, bias=True).reshape(len(delta), -1)
    return _greedy(within - share * (1 - share) * np.outer(delta, delta), delta, limit)


def _of_gold(votes: np.ndarray, gold: np.ndarray) -> tuple[float, np.ndarray]:
    if gold.all() or not gold.any():
        raise W2SError(f"gold is {bool(gold[0])} for all {len(gold)} rows; expected both values")
    accepts = votes == 1
    return float(gold.mean()), accepts[gold].mean(0) - accepts[~gold].mean(0)


def _of_model(model: Any, n_verifiers: int) -> tuple[float, np.ndarray]:
    rates = getattr(model, "rates", None)
    if rates is None or tuple(rates.shape) != (n_verifiers, 2, 3):
        shape = None if rates is None else tuple(rates.shape)
        raise W2SError(
            f"model has rates of shape {shape}; expected a label model of two classes, fitted to "
            f"the votes of these {n_verifiers} verifiers"
        )
    return float(model.prior[1]), (rates[:, 1, 1] - rates[:, 0, 1]).numpy()


def _greedy(within: np.ndarray, delta: np.ndarray, limit: float) -> np.ndarray:
    spread = np.sqrt(np.maximum(within.diagonal(), _LEAST_VARIANCE))
    correlation = np.abs(within / np.outer(spread, spread))
    np.fill_diagonal(correlation, 0.0)
    information = np.abs(delta) / spread
    keep = np.ones(len(delta), dtype=bool)
    while correlation.max() > limit:
        i, j = np.unravel_index(int(correlation.argmax()), correlation.shape)
        dropped = i if information[i] < information[j] else j
        keep[dropped] = False
        correlation[dropped] = correlation[:, dropped] = 0.0
    return keep
