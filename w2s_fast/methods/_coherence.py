r"""Mutual predictability of a labelling: how well all other labels predict each label.

    U(y) = sum_i log P(y_i | x_i, all (x_j, y_j) with j != i)
    P(c | x_i, others) = softmax_c(s_i / tau),    s_i = (H Y - diag(H) Y)_i / (1 - H_ii)

Y (N, K) is one-hot, H the hat matrix of ridge regression with an intercept, and s_i the exact
prediction for row i of a regression without it. Softmax at temperature tau is Bayes' rule for
Gaussian noise of variance tau around the one-hot labels; tau maximises the
likelihood of the labelling, so that noisy labels do not count as impossible. Relabelling row j from
a to b moves s_ia by -d_i and s_ib by +d_i, d_i = H_ij / (1 - H_ii), and leaves s_j alone: N
numbers, not N regressions.

Source: the objective is that of Wen et al. 2025 (arXiv 2506.10139); leave-one-out by the hat
matrix, e.g. Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", §7.10.
"""

from __future__ import annotations

import math

import numpy as np

_COLDEST, _HOTTEST = 0.01, 10.0  # tau


def hat_factor(x: np.ndarray, ridge: float) -> np.ndarray:
    """Return F (N, R) float32 with H = F F^T.

    The penalty is ``ridge`` times N times the mean variance of a feature: a direction of average
    variance is halved by ``ridge`` 1, and the features' unit does not matter.

    Args:
        x: (N, D) features.
        ridge: above 0.
    """
    from scipy.linalg import cholesky, solve_triangular

    n, d = x.shape
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    penalty = ridge * max(np.square(x).sum() / d, np.finfo(np.float64).tiny)
    if d <= n:
        lower = cholesky(x.T @ x + penalty * np.eye(d), lower=True)
        factor = solve_triangular(lower, x.T, lower=True).T
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        values = np.clip(values, 0.0, None)
        factor = vectors * np.sqrt(values / (values + penalty))
    return np.hstack([factor, np.full((n, 1), n**-0.5)]).astype(np.float32)


class Coherence:
    """A labelling and its U, updated one label at a time.

    Attributes:
        labels: (N,) int64, changed by ``relabel``.
        counts: (K,) int64, number of rows of each class.
        value: U, in nats.
        temperature: tau, fitted by ``refresh``.
    """

    def __init__(self, factor: np.ndarray, labels: np.ndarray, classes: int) -> None:
        self._factor = factor
        self._leverage = np.square(factor.astype(np.float64)).sum(1)
        self._left = np.clip(1.0 - self._leverage, 1e-6, None)
        self.labels = labels.copy()
        self.counts = np.bincount(labels, minlength=classes)
        self.refresh()

    def refresh(self) -> None:
        """Recompute everything, including tau, from the labels."""
        from scipy.optimize import minimize_scalar

        self._onehot = np.eye(len(self.counts))[self.labels].T.copy()
        fitted = (self._onehot @ self._factor) @ self._factor.T
        scores = (fitted - self._leverage * self._onehot) / self._left
        optimum = minimize_scalar(
            lambda log_tau: -self._likelihood(scores * math.exp(-log_tau)),
            bounds=(math.log(_COLDEST), math.log(_HOTTEST)),
            method="bounded",
        )
        self.temperature = math.exp(optimum.x)
        self._z = scores / self.temperature  # (K, N)
        self._spread = _lse(self._z).sum()
        self.value = self._likelihood(self._z)

    def _likelihood(self, z: np.ndarray) -> float:
        return float((self._onehot * z).sum() - _lse(z).sum())

    def columns(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, N), the columns of H for B rows, for ``propose``."""
        return self._factor[rows] @ self._factor.T

    def propose(self, row: int, label: int, column: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the change of U if ``row`` had ``label``, and the scores for ``relabel``."""
        current = self.labels[row]
        move = column / (self._left * self.temperature)
        move[row] = 0.0
        z = self._z.copy()
        z[current] -= move
        z[label] += move
        own = (self._onehot[label] - self._onehot[current]) @ move + z[label, row] - z[current, row]
        return float(own + self._spread - _lse(z).sum()), z

    def relabel(self, row: int, label: int, gain: float, z: np.ndarray) -> None:
        """Apply a proposal."""
        current = self.labels[row]
        self.labels[row] = label
        self._onehot[current, row], self._onehot[label, row] = 0.0, 1.0
        self.counts[current] -= 1
        self.counts[label] += 1
        self._z, self._spread, self.value = z, _lse(z).sum(), self.value + gain


def _lse(z: np.ndarray) -> np.ndarray:
    """Return the logsumexp over classes (N,) of (K, N)."""
    if len(z) == 2:  # three times as fast, in the inner loop of the search
        return np.maximum(z[0], z[1]) + np.log(1 + np.exp(-np.abs(z[0] - z[1])))
    top = z.max(0)
    return top + np.log(np.exp(z - top).sum(0))
