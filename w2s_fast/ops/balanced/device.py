"""Balanced labels in a fixed number of steps, without a host sync, for any device.

1. A few exact passes of coordinate descent on the dual: class by class, the bias moves into the
   middle of the interval in which exactly counts_k rows choose class k, the others as they are.
2. Class by class, exactly counts_k of the free rows are taken, those that prefer class k most over
   the remaining classes. With the exact prices that is the argmax of every row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops.dispatch import backend

_PASSES = 8


def solve(z: Tensor, counts: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return bias (K,) and hard (N,) int64 of finite logits (N, K), for counted rows only."""
    bias = _descend(z, counts, counted)
    return bias, _take(z + bias, counts, counted)


def _descend(z: Tensor, counts: Tensor, counted: Tensor) -> Tensor:
    n, k = z.shape
    bias = torch.zeros(k, dtype=z.dtype, device=z.device)
    classes, rows = torch.arange(k, device=z.device), counted.sum()
    if n == 0:
        return bias
    for _ in range(_PASSES):
        for a in range(k):
            others = torch.where(classes == a, float("-inf"), z + bias)
            # The bias at which a row turns to class a, in order.
            turns = torch.where(counted, others.amax(1) - z[:, a], float("inf")).sort().values
            last = turns.gather(0, (counts[a] - 1).clamp_min(0).unsqueeze(0))
            following = turns.gather(0, counts[a].clamp_max(n - 1).unsqueeze(0))
            last = torch.where(counts[a] > 0, last, following - 2.0)
            following = torch.where(counts[a] < rows, following, last + 2.0)
            middle = torch.where(rows > 0, (last + following) / 2, 0.0)
            bias = torch.where(classes == a, middle, bias)
    return bias - bias.mean()


def _take(y: Tensor, counts: Tensor, counted: Tensor) -> Tensor:
    kernels = backend("quantile", y)
    k = y.shape[1]
    hard = torch.full(y.shape[:1], k - 1, dtype=torch.int64, device=y.device)
    free = counted.contiguous()
    for a in range(k - 1):
        lead = (y[:, a] - y[:, a + 1 :].amax(1)).contiguous()
        at = kernels.kth_value(lead, free.sum() - counts[a], free)
        above = kernels.count_at(lead, free, at)[0]
        mine = kernels.threshold_mask(lead, free, at, counts[a] - above)
        hard = torch.where(mine, a, hard)
        free = free & ~mine
    return hard
