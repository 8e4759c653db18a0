"""CUDA backend of the order statistics: one cooperative launch of csrc/cuda/quantile.h, no sync.

The rounds of a selection over several processes, and the masks, are plain torch: each is one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops import native_cuda as native
from w2s_fast.ops.dtypes import DTYPE_CODES
from w2s_fast.ops.quantile import ref as plain
from w2s_fast.ops.quantile.ref import count_at, histogram, successor, threshold_mask

__all__ = ["histogram", "kth_value", "threshold_mask", "quantile", "successor", "count_at"]


def quantile(scores: Tensor, q: Tensor, keep: Tensor | None) -> Tensor:
    """Return the 0-d fp32 ``q``-quantile of the scores (N,) with ``keep``; see the op."""
    if scores.numel() > native.library().MAX_SCORES:
        return plain.quantile(scores, q, keep)
    return _select(scores, keep, q=q)


def kth_value(scores: Tensor, rank: Tensor, keep: Tensor | None) -> Tensor:
    """Return the 0-d fp32 kept score of the 0-based ``rank``; see the op."""
    if scores.numel() > native.library().MAX_SCORES:
        return plain.kth_value(scores, rank, keep)
    return _select(scores, keep, rank=rank)


def _select(
    scores: Tensor, keep: Tensor | None, q: Tensor | None = None, rank: Tensor | None = None
) -> Tensor:
    library, n, device = native.library(), scores.numel(), scores.device
    counters = torch.empty(library.QUANTILE_COUNTERS, dtype=torch.int64, device=device)
    out = torch.empty((), dtype=torch.float32, device=device)
    with native.device_of(scores):
        error = library.quantile(
            n, scores.data_ptr(), DTYPE_CODES[scores.dtype], 0 if keep is None else keep.data_ptr(),
            0 if q is None else q.data_ptr(), 0 if rank is None else rank.data_ptr(),
            counters.data_ptr(), out.data_ptr(), native.stream_of(scores),
        )  # fmt: skip
    native.check(error, f"quantile of {n} scores")
    return out
