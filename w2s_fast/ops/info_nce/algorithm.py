"""InfoNCE over chunks of queries: similarities, one row pass over them in place, two products.

A chunk of n queries has n M similarities, as many as the memory budget holds. The row pass turns
them into their own gradient, so a call with gradients takes 6 N M D operations, what the three bare
products take, and N M is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.ops.checks import check_total
from w2s_fast.ops.chunking import rows_per_chunk
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.info_nce import products
from w2s_fast.ops.info_nce.call import Pairs, RowsCall, new_stats


@dataclass(slots=True)
class Solution:
    """The record (6, N) of a call, and the gradients that were asked for.

    They have the dtype of the inputs or a wider one, so that a loss scale comes before rounding.
    """

    stats: Tensor
    queries: Tensor | None = None
    documents: Tensor | None = None


def solve(
    x: Pairs,
    weight: Tensor | None = None,
    needs: tuple[bool, bool] = (False, False),
    mean: bool = False,
) -> Solution:
    """Compute the row losses, and gradients of their sum or mean weighted by ``weight`` (N,).

    A query of weight 0 has no positive, so that its NaN stays out.
    """
    kernels = backend("info_nce", x.queries)
    n, m = x.queries.shape[0], x.documents.shape[0]
    acc, narrow = accumulator(x.queries.dtype), products.gradient_dtype(x.queries)
    # A gradient of 16 bits has a buffer of its own.
    own = any(needs) and narrow != acc
    entry = acc.itemsize + (narrow.itemsize if own else 0)
    size = min(rows_per_chunk(n, m, entry, x.memory_mib), n)
    # On accelerators every row starts at a 16-byte boundary, in both widths.
    width = m if x.queries.device.type == "cpu" else -(-m // 8) * 8
    room = x.queries.new_empty((size, width), dtype=acc)[:, :m]
    grads = x.queries.new_empty((size, width), dtype=narrow)[:, :m] if own else room
    stats = new_stats(x.queries)
    sums = products.PairGradients(x, needs, x.positives >= 0)
    for start in range(0, n, max(size, 1)):
        rows = slice(start, min(start + size, n))
        length = rows.stop - rows.start
        products.similarities(x.queries[rows], x.documents, room[:length])
        call = RowsCall(
            room[:length], x.positives[rows], x.negatives.of_rows(rows), 1 / x.temperature,
            x.focal_gamma, stats[:, rows], None if weight is None else weight[rows],
            grads[:length] if any(needs) else None,
        )  # fmt: skip
        kernels.rows(call)
        if call.grad is not None:
            sums.add(call.grad, rows)
    del room, grads
    scale = stats.new_tensor(1 / x.temperature)
    if mean and any(needs):  # in one factor: 16 bits are rounded by each
        scale = mean_of(scale, normaliser(x.positives, weight))
    return Solution(stats, *sums.result(scale))


def normaliser(positives: Tensor, weight: Tensor | None) -> Tensor:
    """Return 0-d: the sum of the weights of the queries that count; differentiable in them."""
    counted = positives >= 0
    if weight is None:
        return counted.sum()
    return torch.where(counted, weight, 0).sum()


def mean_of(total: Tensor, count: Tensor) -> Tensor:
    """Return total / count, and 0 where nothing counts."""
    check_total(count)
    return torch.where(count > 0, total / torch.where(count > 0, count, 1), 0.0).to(total.dtype)
