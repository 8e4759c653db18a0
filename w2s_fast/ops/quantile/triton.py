"""Triton backend of the order statistics: five small launches, no sync."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from w2s_fast.kernels import quantile as kernels
from w2s_fast.ops.native_cuda import device_of
from w2s_fast.ops.quantile.keys import rounds_of, score_of
from w2s_fast.ops.quantile.ref import count_at, threshold_mask

__all__ = ["histogram", "kth_value", "threshold_mask", "quantile", "successor", "count_at"]


def quantile(scores: Tensor, q: Tensor, keep: Tensor | None) -> Tensor:
    """Return the 0-d fp32 ``q``-quantile of the scores (N,) with ``keep``; see the op."""
    return _select(scores, q, keep, kth=False)


def kth_value(scores: Tensor, rank: Tensor, keep: Tensor | None) -> Tensor:
    """Return the 0-d fp32 kept score of the 0-based ``rank``; see the op."""
    return _select(scores, rank, keep, kth=True)


def histogram(scores: Tensor, keep: Tensor | None, prefix: Tensor, step: int) -> Tensor:
    """Run one round of a radix select; see the reference backend."""
    counts = torch.zeros(kernels.BINS + 1, dtype=torch.int64, device=scores.device)
    shift, bits = rounds_of(scores.dtype)[step]
    n = scores.numel()
    if n > 0:
        with device_of(scores):
            kernels.histogram_kernel[(triton.cdiv(n, kernels.BLOCK),)](
                scores, _bytes(keep), prefix, counts, n,
                SHIFT=shift, BITS=bits, BLOCK=kernels.BLOCK, num_warps=4,
            )  # fmt: skip
    return counts


def successor(scores: Tensor, keep: Tensor | None, at: Tensor) -> Tensor:
    """Return the 0-d smallest kept score above ``at``; +inf if there is none."""
    least = torch.zeros((), dtype=torch.int64, device=scores.device)
    n = scores.numel()
    if n > 0:
        with device_of(scores):
            kernels.successor_kernel[(triton.cdiv(n, kernels.BLOCK),)](
                scores, _bytes(keep), at, least, n, BLOCK=kernels.BLOCK, num_warps=4
            )
    score = score_of(2**32 - least.clamp_min(1), scores.dtype)
    return torch.where(least == 0, float("inf"), score)


def _select(scores: Tensor, q: Tensor, keep: Tensor | None, kth: bool) -> Tensor:
    n = scores.numel()
    counters = torch.zeros(kernels.SIZE, dtype=torch.int64, device=scores.device)
    out = torch.empty((), dtype=torch.float32, device=scores.device)
    with device_of(scores):
        for step in range(3 if kth else 4):
            kernels.count_kernel[(triton.cdiv(n, kernels.BLOCK),)](
                scores, _bytes(keep), q, counters, n,
                ROUND=step, BLOCK=kernels.BLOCK, KTH=kth, num_warps=4,
            )  # fmt: skip
        kernels.finish_kernel[(1,)](q, counters, out, KTH=kth, num_warps=8)
    return out


def _bytes(keep: Tensor | None) -> Tensor | None:
    return None if keep is None else keep.view(torch.uint8)
