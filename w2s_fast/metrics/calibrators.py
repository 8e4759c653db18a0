r"""Maps that calibrate class probabilities, fitted on predictions with known labels.

    temperature   q ~ p^(1/T)                    one number (Guo et al. 2017, arXiv 1706.04599)
    platt, C = 2  logit q = a logit p + b        two numbers (Platt 1999)
    platt, C > 2  q_c ~ exp(a_c log p_c + b_c)   vector scaling (Guo et al. 2017, §4.2)

Each minimises cross-entropy with Platt's targets: (n + 1) / (n + 2) for the label, the rest shared
by the other classes, so that data without errors have a finite optimum. n is the number of items of
the label's class, and of all items for a temperature, which all classes share. The fit is convex.

The predictions must come from a model that was not trained on these labels: on its own training
data a model is overconfident, and no calibrator fitted there would correct it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.metrics._probabilities import checked_labels, log_probs

_MIN_SCALE, _MAX_SCALE = 1e-3, 1e3  # of 1/T; the first is a uniform answer, the second a hard one


@dataclass(frozen=True)
class Calibrator:
    """A map of class probabilities: q_c ~ exp(scale_c log p_c + shift_c).

    Attributes:
        scale: Factors of the log-probabilities, one per class.
        shift: Summands, one per class.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def temperature(self) -> float | None:
        """T where the map is q ~ p^(1/T), else None."""
        if any(self.shift) or len(set(self.scale)) > 1:
            return None
        return 1 / self.scale[0]

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities (N, C), float32.

        Raises:
            W2SError: ``probs`` are no probabilities, or have another number of classes.
        """
        return _softmax(self._logits(log_probs(probs))).astype(np.float32)

    def _logits(self, log_p: np.ndarray) -> np.ndarray:
        if log_p.shape[1] != len(self.scale):
            raise W2SError(
                f"probs have {log_p.shape[1]} classes; expected {len(self.scale)}, those that the "
                "calibrator was fitted to"
            )
        return log_p * np.array(self.scale) + np.array(self.shift)


def fit_temperature(values: np.ndarray, labels: np.ndarray, *, logits: bool = False) -> Calibrator:
    """Fit one temperature to predictions (N, C); it never changes the order of the classes.

    Args:
        values: (N, C) class probabilities, fp16 or wider.
        labels: (N,) true classes.
        logits: ``values`` are logits, any real numbers.

    Raises:
        W2SError: Values or labels do not fit, or all labels are one class.
    """
    log_p, ids = _checked(values, labels, logits, fewest=2)
    targets = _targets(ids, np.full(log_p.shape[1], len(ids)))
    n_classes = log_p.shape[1]

    def slope(log_scale: float) -> float:
        return float(((_softmax(log_p * np.exp(log_scale)) - targets) * log_p).sum(1).mean())

    scale = np.exp(_root_of_increasing(slope, np.log(_MIN_SCALE), np.log(_MAX_SCALE)))
    return Calibrator((float(scale),) * n_classes, (0.0,) * n_classes)


def _root_of_increasing(f: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of an increasing function, the nearer end if there is none, 0 if f is 0."""
    from scipy.optimize import brentq

    at_low, at_high = f(low), f(high)
    if at_low == at_high == 0:
        return 0.0
    if at_low >= 0:
        return low
    return high if at_high <= 0 else float(brentq(f, low, high, xtol=1e-12))


def fit_platt(values: np.ndarray, labels: np.ndarray, *, logits: bool = False) -> Calibrator:
    """Fit Platt scaling to predictions of two classes, vector scaling to those of more.

    It also corrects a preference for some classes, so the top class of an item can change.

    Args:
        values: (N, C) class probabilities, fp16 or wider.
        labels: (N,) true classes.
        logits: ``values`` are logits, any real numbers.

    Raises:
        W2SError: Values or labels do not fit, or a class does not occur in ``labels``.
    """
    from scipy.optimize import minimize

    n_classes = np.shape(values)[-1] if np.ndim(values) == 2 else 0
    log_p, ids = _checked(values, labels, logits, fewest=n_classes)
    targets = _targets(ids, np.bincount(ids))
    unit = float(log_p.std()) or 1.0  # brings the parameters to one size
    n_scales = 1 if n_classes == 2 else n_classes

    def split(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale, shift = parameters[:n_scales], parameters[n_scales:]
        return np.broadcast_to(scale, (n_classes,)), np.concatenate([[0.0], shift])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, shift = split(parameters)
        log_q = _log_softmax(log_p / unit * scale + shift)
        residual = (np.exp(log_q) - targets) / len(targets)
        by_class = (residual * log_p / unit).sum(0)
        slopes = by_class.sum(keepdims=True) if n_scales == 1 else by_class
        gradient = np.concatenate([slopes, residual.sum(0)[1:]])
        return float(-(targets * log_q).sum(1).mean()), gradient

    start = np.concatenate([np.full(n_scales, unit), np.zeros(n_classes - 1)])
    fit = minimize(
        loss, start, jac=True, method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9},
    )  # fmt: skip
    scale, shift = split(fit.x)
    return Calibrator(tuple((scale / unit).tolist()), tuple(shift.tolist()))


# Name -> function that fits a calibrator to out-of-sample predictions and their true labels.
CALIBRATORS: dict[str, Callable[[np.ndarray, np.ndarray], Calibrator]] = {
    "temperature": fit_temperature,
    "platt": fit_platt,
}


def _checked(
    values: np.ndarray, labels: np.ndarray, logits: bool, fewest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities (N, C) and class ids (N,) of at least ``fewest`` classes."""
    log_p = _log_softmax(_checked_logits(values)) if logits else log_probs(values)
    ids = checked_labels(labels, *log_p.shape)
    n_classes = log_p.shape[1]
    absent = np.setdiff1d(np.arange(n_classes), ids)
    if n_classes - len(absent) < fewest:
        every = fewest == n_classes
        raise W2SError(
            f"labels: none of {len(ids)} items is of class {', '.join(map(str, absent))}; expected "
            f"{'every class' if every else 'two classes or more'} to occur: give more items"
            + (", or fit a temperature" if fewest > 2 else "")
        )
    return log_p, ids


def _targets(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Platt's targets (N, C) for class ids (N,), with the n of each class (C,)."""
    rest = 1 / (counts[ids] + 2)
    targets = np.repeat(rest[:, None] / (len(counts) - 1), len(counts), 1)
    np.put_along_axis(targets, ids[:, None], 1 - rest[:, None], 1)
    return targets


def _checked_logits(logits: np.ndarray) -> np.ndarray:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or not len(values) or not np.isfinite(values).all():
        raise W2SError(
            f"logits have shape {values.shape}; expected finite numbers (items, classes), at least "
            "one item and two classes"
        )
    return values


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(logits))
