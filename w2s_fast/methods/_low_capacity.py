"""Predictions of a model of little capacity: logistic regression on a few principal components."""

from __future__ import annotations

import numpy as np
import torch

from w2s_fast.methods._base import Targets
from w2s_fast.methods._logreg import out_of_fold


def low_capacity_probs(
    features: np.ndarray, weak: Targets, *, rank: int, l2: float, folds: int, seed: int
) -> np.ndarray:
    """Return the (N, K) float32 class probabilities of every row, by a fit on other folds.

    Args:
        features: (N, D) hidden states.
        weak: labels (N, K); rows of weight 0 are predicted and not fitted.
        rank: number of principal components of the used rows; fewer if there are no more.
        l2: penalty of the regression on components scaled to deviation 1.
        folds: number of folds, at most the number of used rows.
        seed: seed of the folds.
    """
    x = torch.from_numpy(features.astype(np.float64))
    pool = torch.from_numpy(weak.used.nonzero()[0])
    x = x - x[pool].mean(0)
    _, _, directions = torch.linalg.svd(x[pool], full_matrices=False)
    components = x @ directions[:rank].T
    probs = torch.from_numpy(weak.probs.astype(np.float64))
    known = out_of_fold(components, probs, pool, l2=l2, folds=folds, seed=seed)
    return known.numpy().astype(np.float32)
