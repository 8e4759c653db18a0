r"""Class bias that gives probabilities a required class balance.

    p_i <- softmax(log p_i + b),     b the minimum of  mean_i lse(log p_i + b) - pi . b

The gradient is mean_i softmax(log p_i + b) - pi, so at the minimum the mean probability of every
class is pi. A language model's preference for some answers, whatever the question, is such a bias.

Sources: Zhao et al. 2021 (arXiv 2102.09690), contextual calibration; Zhou et al. 2023 (arXiv
2309.17249), batch calibration, which estimates the bias from the batch.
"""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-6  # smallest probability


def log_probs(probs: np.ndarray) -> np.ndarray:
    """Return (N, K) float64 logarithms of probabilities, clipped below at 1e-6."""
    return np.log(np.clip(probs.astype(np.float64), _FLOOR, None))


def balance_of(probs: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return (K,) float64, the mean probability of every class over the rows ``used`` (N,) bool."""
    mean = np.clip(probs[used].astype(np.float64).mean(0), _FLOOR, None)
    return mean / mean.sum()


def class_bias(
    log_p: np.ndarray, balance: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """Return the bias (K,) under which log-probabilities (N, K) have mean ``balance`` (K,).

    ``start`` is the initial bias; None: the solution for equal rows.
    """
    from scipy.optimize import minimize

    def objective(bias: np.ndarray) -> tuple[float, np.ndarray]:
        z = log_p + bias
        top = z.max(axis=1, keepdims=True)
        p = np.exp(z - top)
        total = p.sum(axis=1, keepdims=True)
        value = (np.log(total) + top).mean() - balance @ bias
        return float(value), (p / total).mean(0) - balance

    if start is None:
        zero = np.zeros(len(balance))
        start = np.log(balance) - np.log(objective(zero)[1] + balance)
    return minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8}).x


def matched(probs: np.ndarray, balance: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return (N, K) float64 probabilities with mean ``balance`` (K,) over the rows ``used``."""
    from scipy.special import softmax

    log_p = log_probs(probs)
    return softmax(log_p + class_bias(log_p[used], balance), axis=1)
