"""Nearest neighbours by Euclidean distance, a block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

_BLOCK = 1 << 22  # distances held at a time


def nearest(x: Tensor, k: int, pool: Tensor) -> Tensor:
    """The k nearest rows of the pool to every row, never the row itself.

    Distances come from matrix products, so ``x`` should be centred: a mean that is large against
    the distances would cost their last digits.

    Args:
        x: (N, D) floating point.
        k: taken to be at most len(pool) - 1, so that every row gets as many.
        pool: (M,) int64 indices of the rows that may be neighbours.

    Returns:
        (N, k) int64 indices into ``x``, nearest first.

    Raises:
        W2SError: if the pool holds fewer than two rows.
    """
    if len(pool) < 2:
        raise W2SError(
            f"{len(pool)} rows are left to look for neighbours in; expected at least 2, loosen the "
            "method's settings or give it more rows"
        )
    points, k = x[pool], min(k, len(pool) - 1)
    place = torch.full((len(x),), -1, dtype=torch.int64)
    place[pool] = torch.arange(len(pool))
    found = []
    for rows in torch.arange(len(x)).split(max(1, _BLOCK // len(pool))):
        distance = torch.cdist(x[rows], points)
        own = place[rows]
        itself = (own >= 0).nonzero().squeeze(1)
        distance[itself, own[itself]] = torch.inf
        found.append(pool[distance.topk(k, largest=False).indices])
    return torch.cat(found)
