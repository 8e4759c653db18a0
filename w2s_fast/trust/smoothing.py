r"""Smooth labels over the graph of nearest neighbors.

    S = D^-1/2 A D^-1/2,     F = (1 - alpha) (I - alpha S)^-1 Y

A has a 1 where one of two rows is among the k nearest of the other, D its row sums. Every row of F
is normalised to sum to 1. Source: Zhou et al. 2004, "Learning with local and global consistency".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from w2s_fast.errors import W2SError
from w2s_fast.neighbors import nearest
from w2s_fast.trust._checks import check_features, check_number, check_probs

_STEPS = 1000
_TOLERANCE = 1e-8


def smooth_labels(features: Any, probs: Any, *, k: int = 10, alpha: float = 0.5) -> np.ndarray:
    """Return smoothed labels (N, C) float32.

    Args:
        features: (N, D) hidden states; neighbors are by Euclidean distance.
        probs: (N, C) labels.
        k: Number of neighbors, at most N - 1 are used.
        alpha: Share of a label that comes from neighbors, in [0, 0.999]; 0 returns the labels.

    Raises:
        W2SError: Shapes or values do not fit.
    """
    from scipy.sparse import csr_matrix, diags

    x = check_features(features)
    labels = check_probs(probs, len(x))
    share = check_number("alpha", alpha, 0, 0.999)
    if check_number("k", k, 1) != int(k):
        raise W2SError(f"k is {k!r}; expected a whole number of neighbors")
    if not share:
        return labels.astype(np.float32)
    n = len(x)
    near = nearest(torch.from_numpy(x - x.mean(0)), int(k), torch.arange(n)).numpy()
    rows = np.repeat(np.arange(n), near.shape[1])
    graph = csr_matrix((np.ones(near.size), (rows, near.ravel())), shape=(n, n))
    graph = graph.maximum(graph.T)
    scale = diags(1 / np.sqrt(np.asarray(graph.sum(1))[:, 0]))
    graph = scale @ graph @ scale
    smooth = labels
    # The spectral radius of S is 1, so every step shrinks the error by alpha.
    for _ in range(_STEPS):
        previous, smooth = smooth, share * (graph @ smooth) + (1 - share) * labels
        if np.abs(smooth - previous).max() < _TOLERANCE * (1 - share):
            break
    return (smooth / smooth.sum(1, keepdims=True)).astype(np.float32)
