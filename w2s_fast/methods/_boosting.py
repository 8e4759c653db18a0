r"""SAMME: AdaBoost for K classes, one round at a time.

    e = sum_i d_i [model wrong on i] / sum_i d_i
    a = log((1 - e) / e) + log(K - 1),          e clipped to [1 / 2n, 1 - 1 / 2n]; a < 0 becomes 0
    d_i <- d_i exp(a [model wrong on i]),       scaled to mean 1

A model that guesses has e = 1 - 1/K and a = 0: it has no vote, and the rows keep their weights.
Source: Zhu, Zou, Rosset & Hastie 2009, "Multi-class AdaBoost"; K = 2 is AdaBoost.M1. The clipping,
for models without errors, is this package's own.
"""

from __future__ import annotations

import numpy as np


def samme_round(
    wrong: np.ndarray, row_weight: np.ndarray, n_classes: int
) -> tuple[float, np.ndarray]:
    """Return the weight of a model, and the weights (n,) of the rows of the next one.

    Args:
        wrong: (n,) bool, whether the model errs on a row.
        row_weight: (n,) weights of the rows that the model was trained with, none negative.
        n_classes: K, at least 2.
    """
    low = 0.5 / len(wrong)
    error = np.clip((row_weight * wrong).sum() / row_weight.sum(), low, 1 - low)
    vote = max(0.0, float(np.log((1 - error) / error) + np.log(n_classes - 1)))
    scaled = row_weight * np.exp(vote * wrong)
    return vote, scaled / scaled.mean()
