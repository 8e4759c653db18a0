r"""Calibration of class probabilities: do predictions of confidence p come true in a share p.

    ECE    sum_b n_b / N |accuracy_b - confidence_b|   (Naeini 2015; Guo et al. 2017, Eq. 3)
    NLL    mean_i -log p_i,y_i                          nats
    Brier  mean_i sum_c (p_ic - [c = y_i])^2            in [0, 2] (Brier 1950)

The bins b are of equal width in confidence, the probability of the top class. ECE is biased upward:
calibrated probabilities differ from the labels drawn from them, too. ``ece_noise`` is what they
would have on average, so an ECE near it shows no miscalibration (Kumar et al. 2019, arXiv
1909.10155, debias another error for the same reason). NLL and Brier score have no such bias.

N items, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.metrics._probabilities import checked_labels, checked_probs, log_probs

N_BINS = 15  # as in Guo et al. 2017


def ece(probs: np.ndarray, labels: np.ndarray, n_bins: int = N_BINS) -> float:
    """Return the expected calibration error of the top class, in [0, 1].

    Args:
        probs: (N, C) class probabilities.
        labels: (N,) true classes.
        n_bins: Number of bins of equal width.

    Raises:
        W2SError: Probabilities or labels do not fit, or ``n_bins`` is below 1.
    """
    p = checked_probs(probs)
    right = p.argmax(1) == checked_labels(labels, *p.shape)
    confidence = p.max(1)
    excess = np.bincount(_bins(confidence, n_bins), weights=right - confidence)
    return float(np.abs(excess).sum() / len(p))


def ece_noise(probs: np.ndarray, n_bins: int = N_BINS) -> float:
    """Return the mean ECE that these probabilities (N, C) would have if they were calibrated.

    Within a bin, right minus confidence is then nearly normal around 0, of which the mean
    magnitude is sqrt(2 / pi) standard deviations.

    Raises:
        W2SError: As ``ece``.
    """
    confidence = checked_probs(probs).max(1)
    variance = np.bincount(_bins(confidence, n_bins), weights=confidence * (1 - confidence))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(confidence))


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """The bins of a reliability diagram that have items, B of them, from low to high confidence.

    Attributes:
        n: (B,) int64, items.
        confidence: (B,) mean probability of the top class.
        accuracy: (B,) share of items whose top class is right.
    """

    n: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration_curve(
    probs: np.ndarray, labels: np.ndarray, n_bins: int = N_BINS
) -> CalibrationCurve:
    """Return confidence and accuracy of each bin of ``ece``, whose sum over bins it is.

    Args:
        probs: (N, C) class probabilities.
        labels: (N,) true classes.
        n_bins: Number of bins of equal width; empty ones are left out.

    Raises:
        W2SError: As ``ece``.
    """
    p = checked_probs(probs)
    right = p.argmax(1) == checked_labels(labels, *p.shape)
    confidence = p.max(1)
    bins = _bins(confidence, n_bins)
    n = np.bincount(bins)
    filled = n > 0
    means = [
        np.bincount(bins, weights=values)[filled] / n[filled] for values in (confidence, right)
    ]
    return CalibrationCurve(n[filled], *means)


def _bins(confidence: np.ndarray, n_bins: int) -> np.ndarray:
    if n_bins < 1:
        raise W2SError(f"n_bins is {n_bins}; expected 1 or more")
    return np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)


def nll(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood of ``labels`` (N,) under ``probs`` (N, C), nats.

    A probability of 0 counts as the smallest number of its dtype.

    Raises:
        W2SError: Probabilities or labels do not fit.
    """
    log_p = log_probs(probs)
    ids = checked_labels(labels, *log_p.shape)
    return float(-np.take_along_axis(log_p, ids[:, None], 1).mean())


def brier(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the Brier score of ``probs`` (N, C) for ``labels`` (N,), summed over classes.

    Raises:
        W2SError: Probabilities or labels do not fit.
    """
    p = checked_probs(probs)
    ids = checked_labels(labels, *p.shape)
    return float(((p - np.eye(p.shape[1])[ids]) ** 2).sum(1).mean())
