"""CPU backend of the order statistics: the compiled core.

See csrc/cpu/select.cpp, histogram.cpp and threshold_mask.cpp. Results do not depend on the number
of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops import native
from w2s_fast.ops.dtypes import DTYPE_CODES

_BINS = 2048


def quantile(scores: Tensor, q: Tensor, keep: Tensor | None) -> Tensor:
    """Compute the exact quantile of the kept scores; see the op."""
    return _scalar(native.core().quantile(*_where(scores, keep), float(q)))


def kth_value(scores: Tensor, rank: Tensor, keep: Tensor | None) -> Tensor:
    """Return the kept score of the 0-based ``rank``; see the op."""
    return _scalar(native.core().kth_value(*_where(scores, keep), int(rank)))


def histogram(scores: Tensor, keep: Tensor | None, prefix: Tensor, step: int) -> Tensor:
    """Run one round of a radix select; see the reference backend."""
    counts = torch.empty(_BINS + 1, dtype=torch.int64)
    where = _where(scores, keep)
    native.core().histogram(*where, int(prefix), step, counts.data_ptr())
    return counts


def successor(scores: Tensor, keep: Tensor | None, at: Tensor) -> Tensor:
    """Return the smallest kept score above ``at``; +inf if there is none."""
    return _scalar(native.core().successor(*_where(scores, keep), float(at)))


def count_at(scores: Tensor, keep: Tensor | None, at: Tensor) -> Tensor:
    """Return (2,) int64: the number of kept scores above ``at`` and equal to it."""
    return torch.tensor(native.core().count_at(*_where(scores, keep), float(at)))


def threshold_mask(scores: Tensor, keep: Tensor | None, at: Tensor, ties: Tensor) -> Tensor:
    """Return (N,) bool: kept scores above ``at`` and the first ``ties`` of those equal to it."""
    mask = torch.empty(scores.shape, dtype=torch.bool)
    where = _where(scores, keep)
    native.core().threshold_mask(*where, float(at), int(ties), mask.data_ptr())
    return mask


def _where(scores: Tensor, keep: Tensor | None) -> tuple[int, int, int, int]:
    """Return addresses, dtype and number; the tensors are contiguous and outlive the call."""
    mask = 0 if keep is None else keep.data_ptr()
    return scores.data_ptr(), DTYPE_CODES[scores.dtype], mask, scores.numel()


def _scalar(value: float) -> Tensor:
    return torch.full((), value, dtype=torch.float32)
