r"""Topological filter: labels that a neighbour graph supports.

    1. directed graph: every row points to its k nearest rows; remove edges between classes
    2. keep the largest strongly connected component of each class
    3. of these rows, drop those farthest from the mean label of their k nearest, until a share
       ``contamination`` of all rows is dropped

The class of a row is the top class of its weak label. Rows are strongly connected if paths lead
both ways between them; a mislabelled row points to rows of its class, but none points back.

Source: Wu et al. 2020 (arXiv 2012.04835), "A Topological Filter for Learning with Label Noise"; the
`topo` probe of EleutherAI/w2s, whose labels skip step 3 and whose graph is a dense N x N matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from w2s_fast.neighbors import nearest


def supported(x: Tensor, probs: Tensor, pool: Tensor, k: int, contamination: float) -> Tensor:
    """Return the rows of ``pool`` (M,) that are kept, int64, ascending.

    Args:
        x: (N, D) centred features.
        probs: (N, K) soft labels.
        pool: (M,) int64 rows to select from.
        k: number of neighbours.
        contamination: share of the pool to drop; components may drop more.
    """
    connected = pool[torch.from_numpy(_largest(x[pool], probs[pool].argmax(1), k))]
    surplus = round(contamination * len(pool)) - (len(pool) - len(connected))
    if surplus <= 0 or len(connected) < 2:
        return connected
    near = probs[nearest(x, k, connected)[connected]].mean(1)
    far = total_variation(near, probs[connected]).argsort(descending=True, stable=True)
    return connected[far[surplus:]].sort().values


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Return half the sum of |p - q| over classes (N,); |p_1 - q_1| for two classes."""
    return (p - q).abs().sum(1) / 2


def _largest(x: Tensor, hard: Tensor, k: int) -> np.ndarray:
    """Return (M,) bool: rows in the largest strongly connected component of their class."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    near = nearest(x, k, torch.arange(len(x)))
    source = torch.arange(len(x)).repeat_interleave(near.shape[1])
    target = near.flatten()
    same = hard[source] == hard[target]
    ones = np.ones(int(same.sum()), dtype=np.int8)
    shape = (len(x), len(x))
    graph = coo_matrix((ones, (source[same].numpy(), target[same].numpy())), shape=shape)
    _, component = connected_components(graph.tocsr(), directed=True, connection="strong")
    selected = np.zeros(len(x), dtype=bool)
    for c in hard.unique().numpy():
        rows = hard.numpy() == c
        # Ties go to the component with the lowest number.
        selected |= rows & (component == np.bincount(component[rows]).argmax())
    return selected
