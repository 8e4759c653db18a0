r"""One noisy label a row, and a prior belief a row: how the label lies, and what to believe.

    P(y_i = c) = softmax_c(log p_i + b),     L_ic = P(w_i | y_i = c) = sum_l C_cl w_il
    E:  q_ic ~ P(y_i = c) L_ic
    M:  C_cl ~ a + sum_i q_ic C_cl w_il / L_ic,
        b such that mean_i P(y_i) = mean_i q_i, or b = 0

C is (K, K): row c says how often a row of class c gets label l. A soft label is one that was not
seen for certain: w_il is the chance of what was seen had the label been l, and the M-step counts
expected labels. So a label of 1/K everywhere says nothing, and one-hot labels give Dawid and Skene.

Sources: Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM
algorithm", with one annotator and a prior of every row in place of the shared one, which is what
makes one annotator enough; b: Saerens et al. 2002, "Adjusting the outputs of a classifier to new a
priori probabilities".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from w2s_fast.methods._balance import class_bias

LOW = 0.01  # neither a prior nor an entry of C is nearer to 0 or 1


class Channel(NamedTuple):
    """What EM found: ``posterior`` (N, K) of all rows, ``confusion`` (K, K) and ``bias`` (K,)."""

    posterior: np.ndarray
    confusion: np.ndarray
    bias: np.ndarray


def clipped(probs: np.ndarray) -> np.ndarray:
    """Rows of probabilities in [LOW, 1 - LOW], float64, renormalised."""
    probs = np.clip(probs.astype(np.float64), LOW, 1 - LOW)
    return probs / probs.sum(axis=1, keepdims=True)


def estimate(
    prior: np.ndarray,
    weak: np.ndarray,
    kept: np.ndarray,
    *,
    shift: bool = False,
    smoothing: float = 1.0,
    tolerance: float = 1e-6,
    limit: int = 10_000,
) -> Channel:
    """Run EM until no entry of C and b moves by more than ``tolerance``, or ``limit`` times.

    Args:
        prior: (N, K) beliefs about each row before its label was seen.
        weak: (N, K) labels, one-hot or soft.
        kept: (N,) bool rows to learn from; the others get a posterior too.
        shift: estimate b; otherwise the prior's class balance stands.
        smoothing: a, counted once in every cell (Laplace).
    """
    log_prior, weak = np.log(clipped(prior)), weak.astype(np.float64)
    bias = np.zeros(weak.shape[1])
    # The first guess of the label's errors: where it differs from the prior.
    confusion = _normalised(np.exp(log_prior[kept]).T @ weak[kept] + smoothing)
    for _ in range(limit):
        old = confusion, bias
        posterior = _posterior(log_prior + bias, weak, confusion)[kept]
        expected = confusion * ((posterior / (weak[kept] @ confusion.T)).T @ weak[kept])
        confusion = _normalised(expected + smoothing)
        if shift:
            bias = class_bias(log_prior[kept], posterior.mean(0), bias)
            bias = bias - bias.mean()
        if max(np.abs(confusion - old[0]).max(), np.abs(bias - old[1]).max()) < tolerance:
            break
    return Channel(_posterior(log_prior + bias, weak, confusion), confusion, bias)


def _posterior(log_prior: np.ndarray, weak: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(log_prior + np.log(weak @ confusion.T), axis=1)


def _normalised(counts: np.ndarray) -> np.ndarray:
    return clipped(counts / counts.sum(axis=1, keepdims=True))
