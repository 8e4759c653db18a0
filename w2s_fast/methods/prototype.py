r"""Labels drawn towards the class prototypes of the hidden states.

    mu_k = sum_i q_ik h_i / sum_i q_ik            prototypes, from the labels q, at first q = w
    d_ik = |h_i - mu_k|^2 / mean_i |h_i - mu_{c(i)}|^2,   c(i) the top class of q_i
    g_i  = softmax_k(-b d_ik)                     b >= 0 with the least cross-entropy to w
    q    = (1 - mix) w + mix g

Hidden states are those of the untrained student, which does not repeat the weak model's errors;
b makes g as confident as the weak labels allow, so prototypes that say nothing give g = 1/K.

Source: AGMM, Wu et al. 2024, "Modeling the label distributions for weakly-supervised semantic
segmentation" (arXiv 2403.13225): centers of the pseudo-labelled pixels of a class and Gaussian
scores of the distance to them, which supervise the network. There the width is the mean distance
and the network is trained along; here the width is fitted and the states stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, layer_field, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan

_STEEPEST = 50.0  # largest b


@dataclass(frozen=True, kw_only=True)
class Prototype(Method):
    """Mix the labels with the scores of class prototypes.

    Attributes:
        mix: share of the scores in the new labels, in [0, 1].
        rounds: times that prototypes are computed, each from the labels of the round before.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
    """

    mix: float = number(0.5, 0.0, 1.0)
    rounds: int = number(1, 1)
    layer: str = layer_field("half")

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.refine, weak=labels, features=plan.features(layer=self.layer))

    def refine(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """Return the mixed labels (N, K); rows of weight 0 get one and do not move prototypes."""
        x, w, used = features.astype(np.float64), weak.probs.astype(np.float64), weak.used
        q = w
        for _ in range(self.rounds):
            scores = _calibrated(distances(x, q, used), w, used)
            q = (1 - self.mix) * w + self.mix * scores
        return replace(weak, probs=q.astype(np.float32))


def distances(x: np.ndarray, q: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the squared distances (N, K) of rows x (N, D) to the prototypes of labels q (N, K).

    The unit is the mean over ``used`` rows of the distance to the own class. A class without mass
    is infinitely far.
    """
    mass = q[used].sum(0)
    means = q[used].T @ x[used] / np.maximum(mass, np.finfo(np.float64).tiny)[:, None]
    d = np.stack([((x - mean) ** 2).sum(1) for mean in means], axis=1)
    d[:, mass == 0] = np.inf
    own = d[used, q[used].argmax(1)].mean()
    return d / own if own > 0 else d


def _calibrated(d: np.ndarray, w: np.ndarray, used: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax

    finite = np.where(np.isfinite(d), d, 0.0)
    missing = np.where(np.isfinite(d), 0.0, -np.inf)

    def cross_entropy(b: float) -> float:
        logp = log_softmax(missing - b * finite, axis=1)[used]
        return -float((w[used] * np.where(w[used] > 0, logp, 0.0)).sum())

    b = minimize_scalar(cross_entropy, bounds=(0.0, _STEEPEST), method="bounded").x
    return np.asarray(softmax(missing - b * finite, axis=1))
