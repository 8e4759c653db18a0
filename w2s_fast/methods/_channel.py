r"""EM for one noisy label and one prior belief per row: confusion matrix and posterior.

    P(y_i = c) = softmax_c(log p_i + b),     L_ic = P(w_i | y_i = c) = sum_l C_cl w_il
    E:  q_ic ~ P(y_i = c) L_ic
    M:  C_cl ~ a + sum_i q_ic C_cl w_il / L_ic,
        b such that mean_i P(y_i) = mean_i q_i, or b = 0

C is (K, K): C_cl is the probability that a row of class c gets label l. A soft label is an
uncertain observation: w_il is its likelihood had the label been l, and the M-step counts expected
labels. So a uniform label carries no information, and one-hot labels give Dawid and Skene.

Sources: Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM
algorithm", with one annotator and a prior per row instead of a shared one, without which one
annotator would not suffice; b: Saerens et al. 2002, "Adjusting the outputs of a classifier to new a
priori probabilities".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from w2s_fast.methods._balance import class_bias

LOW = 0.01  # priors and entries of C are clipped to [LOW, 1 - LOW]


class Channel(NamedTuple):
    """Result of EM: ``posterior`` (N, K) of all rows, ``confusion`` (K, K) and ``bias`` (K,)."""

    posterior: np.ndarray
    confusion: np.ndarray
    bias: np.ndarray


def clipped(probs: np.ndarray) -> np.ndarray:
    """Return probabilities clipped to [LOW, 1 - LOW] and renormalised, float64."""
    probs = np.clip(probs.astype(np.float64), LOW, 1 - LOW)
    return probs / probs.sum(axis=1, keepdims=True)


def estimate(
    prior: np.ndarray,
    weak: np.ndarray,
    used: np.ndarray,
    *,
    shift: bool = False,
    smoothing: float = 1.0,
    tolerance: float = 1e-6,
    limit: int = 10_000,
) -> Channel:
    """Run EM until no entry of C and b changes by more than ``tolerance``, at most ``limit`` steps.

    Args:
        prior: (N, K) beliefs about each row without its label.
        weak: (N, K) labels, one-hot or soft.
        used: (N,) bool rows to fit; the others get a posterior too.
        shift: estimate b; otherwise b is 0.
        smoothing: a, added to every cell (Laplace).
    """
    log_prior, weak = np.log(clipped(prior)), weak.astype(np.float64)
    bias = np.zeros(weak.shape[1])
    # Initial confusion: where labels differ from the prior.
    confusion = _normalised(np.exp(log_prior[used]).T @ weak[used] + smoothing)
    for _ in range(limit):
        old = confusion, bias
        posterior = _posterior(log_prior + bias, weak, confusion)[used]
        expected = confusion * ((posterior / (weak[used] @ confusion.T)).T @ weak[used])
        confusion = _normalised(expected + smoothing)
        if shift:
            bias = class_bias(log_prior[used], posterior.mean(0), bias)
            bias = bias - bias.mean()
        if max(np.abs(confusion - old[0]).max(), np.abs(bias - old[1]).max()) < tolerance:
            break
    return Channel(_posterior(log_prior + bias, weak, confusion), confusion, bias)


def _posterior(log_prior: np.ndarray, weak: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(log_prior + np.log(weak @ confusion.T), axis=1)


def _normalised(counts: np.ndarray) -> np.ndarray:
    return clipped(counts / counts.sum(axis=1, keepdims=True))
