r"""Which labels the shape of the data supports: components of a neighbour graph, then neighbours.

    1. directed graph: every row points to its k nearest; edges between classes are taken out
    2. of each class, its largest strongly connected component stays
    3. of what stayed, the rows farthest from the mean label of their k nearest go, until a share
       ``contamination`` of all rows is gone

A class is the top class of the weak label. Two rows that point at each other along some path are
strongly connected; a mislabelled row points into its class, but nothing of it points back.

Source: Wu et al. 2020 (arXiv 2012.04835), "A Topological Filter for Learning with Label Noise"; the
`topo` probe of EleutherAI/w2s, whose labels skip step 3 and whose graph is a dense N x N matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from w2s_fast.methods._neighbours import nearest


def supported(x: Tensor, probs: Tensor, pool: Tensor, k: int, contamination: float) -> Tensor:
    """The rows of ``pool`` (M,) that stay, int64 in ascending order.

    Args:
        x: (N, D) centred features.
        probs: (N, K) soft labels.
        pool: (M,) int64 rows to choose from.
        k: neighbours of a row.
        contamination: share of the pool to leave out; components may leave out more.
    """
    kept = pool[torch.from_numpy(_largest(x[pool], probs[pool].argmax(1), k))]
    surplus = round(contamination * len(pool)) - (len(pool) - len(kept))
    if surplus <= 0 or len(kept) < 2:
        return kept
    near = probs[nearest(x, k, kept)[kept]].mean(1)
    far = total_variation(near, probs[kept]).argsort(descending=True, stable=True)
    return kept[far[surplus:]].sort().values


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """(N,) half the sum of |p - q| over classes; for two classes |p_1 - q_1|."""
    return (p - q).abs().sum(1) / 2


def _largest(x: Tensor, hard: Tensor, k: int) -> np.ndarray:
    """(M,) bool: in the largest strongly connected component of its own class."""
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
    kept = np.zeros(len(x), dtype=bool)
    for c in hard.unique().numpy():
        rows = hard.numpy() == c
        # Of equally large components the one with the lowest label.
        kept |= rows & (component == np.bincount(component[rows]).argmax())
    return kept
