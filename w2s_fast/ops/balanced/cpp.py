"""CPU backend of the balanced labels: the exact solver of ``ref`` in csrc/cpu/balance.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops import native


def solve(z: Tensor, counts: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return bias (K,) fp64 and hard (N,) int64 of finite logits (N, K), for counted rows only."""
    rows, counts = z[counted].contiguous(), counts.contiguous()
    n, k = rows.shape
    labels, bias = torch.empty(n, dtype=torch.int64), torch.zeros(k, dtype=torch.float64)
    native.core().balance(
        rows.data_ptr(), n, k, counts.data_ptr(), bias.data_ptr(), labels.data_ptr()
    )
    hard = torch.zeros(z.shape[0], dtype=torch.int64)
    hard[counted] = labels
    return bias, hard
