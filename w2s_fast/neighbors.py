"""Nearest neighbors by Euclidean distance, in blocks of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

_BLOCK = 1 << 22  # distances in memory at a time


def nearest(x: Tensor, k: int, pool: Tensor) -> Tensor:
    """Return the k nearest rows of the pool for every row, excluding the row itself.

    Distances come from matrix products, so ``x`` should be centred: a large mean would cost
    precision.

    Args:
        x: (N, D) floating point.
        k: number of neighbors, at most len(pool) - 1, so that every row has as many.
        pool: (M,) int64 indices of possible neighbors.

    Returns:
        (N, k) int64 indices into ``x``, nearest first.

    Raises:
        W2SError: The pool has fewer than two rows.
    """
    if len(pool) < 2:
        raise W2SError(
            f"{len(pool)} rows are left to look for neighbors in; expected at least 2, loosen the "
            "method's settings or give it more rows"
        )
    points, k = x[pool], min(k, len(pool) - 1)
    position = torch.full((len(x),), -1, dtype=torch.int64)
    position[pool] = torch.arange(len(pool))
    neighbors = []
    for rows in torch.arange(len(x)).split(max(1, _BLOCK // len(pool))):
        distance = torch.cdist(x[rows], points)
        own = position[rows]
        itself = (own >= 0).nonzero().squeeze(1)
        distance[itself, own[itself]] = torch.inf
        neighbors.append(pool[distance.topk(k, largest=False).indices])
    return torch.cat(neighbors)
