r"""A linear head without training: class prototypes, those of rare classes drawn to the others.

    c_k = sum_i w_i q_ik x_i / sum_i w_i q_ik              prototypes of the labels q
    c_k <- (1 - a) c_k + a sum_b softmax_b(tau cos(c_k, c_b)) c_b      for rare k, over frequent b
    z_ik = s (2 x_i c_k - |c_k|^2) / m                     = -s |x_i - c_k|^2 / m + |x_i|^2 s / m

m is the mean squared distance to the prototype of the own class, and s >= 0 gives the logits z the
least cross-entropy to the labels. A class is rare if its share of the labels is below ``rare`` / C:
a mean of few states is far off, and frequent classes show where states lie.

Source: Wang et al. 2023, "Few-shot class-incremental learning via training-free prototype
calibration" (TEEN, arXiv 2312.05229): tau 16, a 1/2, with few-shot classes for the rare ones. There
rows go to the prototype of the largest cosine; here logits are linear, so that a classifier can
start from them, and cosines are those of states around their mean, because states of language
models share a large mean.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.training.data import check_weak_labels

_STEEPEST = 50.0  # largest s


def prototype_head(
    features: torch.Tensor,
    labels: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    tau: float = 16.0,
    alpha: float = 0.5,
    rare: float = 0.5,
) -> nn.Linear:
    """Return a linear head (C, D) on features, computed from their weak labels.

    Args:
        features: (N, D) floating point.
        labels: (N, C) class probabilities, C at least 2.
        weight: (N,) row weights, or None.
        tau: sharpness of the softmax over frequent classes, at least 0.
        alpha: share of the frequent prototypes in those of rare classes, in [0, 1].
        rare: a class is rare if its share of the labels is below ``rare`` / C, in [0, 1].

    Raises:
        W2SError: arguments do not fit, or a class has no labels.
    """
    _check(features, labels, weight, tau, alpha, rare)
    used = np.ones(len(labels)) if weight is None else weight.astype(np.float64)
    rows = used > 0
    x = features.double().numpy()[rows]
    q = labels.astype(np.float64)[rows] * used[rows, None]
    mean = np.average(x, axis=0, weights=used[rows])
    x = x - mean
    mass = q.sum(0)
    if not mass.all():
        raise W2SError(
            f"class {int(mass.argmin())} has no weak labels; expected some of each class, which a "
            "prototype is the mean of"
        )
    means = q.T @ x / mass[:, None]
    means = calibrate(means, mass < rare / len(mass) * mass.sum(), tau, alpha)
    slope = _slope(np.stack([((x - c) ** 2).sum(1) for c in means], axis=1), q)
    head = nn.Linear(x.shape[1], len(mass))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(2 * slope * means))
        bias = -slope * (means**2).sum(1) - 2 * slope * means @ mean
        head.bias.copy_(torch.from_numpy(bias))
    return head


def calibrate(means: np.ndarray, rare: np.ndarray, tau: float, alpha: float) -> np.ndarray:
    """Return prototypes (C, D) in which those of ``rare`` (C,) bool are drawn to the others."""
    from scipy.special import softmax

    if not rare.any() or rare.all():
        return means
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    unit = means / np.where(norms > 0, norms, 1.0)
    shares = softmax(tau * unit[rare] @ unit[~rare].T, axis=1)
    out = means.copy()
    out[rare] = (1 - alpha) * means[rare] + alpha * shares @ means[~rare]
    return out


def _slope(distance: np.ndarray, q: np.ndarray) -> float:
    """Return s / m: of distances (N, C) the factor with the least cross-entropy to q (N, C)."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    own = (distance * q).sum() / q.sum()
    if not own > 0:
        return 0.0
    scaled = distance / own

    def cross_entropy(s: float) -> float:
        return -float((q * log_softmax(-s * scaled, axis=1)).sum())

    return float(minimize_scalar(cross_entropy, bounds=(0.0, _STEEPEST), method="bounded").x / own)


def _check(
    features: torch.Tensor,
    labels: np.ndarray,
    weight: np.ndarray | None,
    tau: float,
    alpha: float,
    rare: float,
) -> None:
    if features.ndim != 2 or not features.is_floating_point() or not len(features):
        raise W2SError(
            f"features have shape {tuple(features.shape)} and dtype {features.dtype}; expected "
            "floating point (N, D) with at least one row"
        )
    if labels.ndim != 2 or labels.shape[1] < 2:
        raise W2SError(
            f"labels have shape {labels.shape}; expected class probabilities (N, C), C at least 2"
        )
    check_weak_labels(labels, weight, len(features), labels.shape[1])
    if weight is not None and not weight.any():
        raise W2SError("all row weights are 0; expected at least one row with labels")
    if not 0 <= tau < float("inf"):
        raise W2SError(f"tau is {tau}; expected a finite number of at least 0")
    for name, value in (("alpha", alpha), ("rare", rare)):
        if not 0 <= value <= 1:
            raise W2SError(f"{name} is {value}; expected a number in [0, 1]")
