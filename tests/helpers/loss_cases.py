"""Cases of the losses of logits."""

from __future__ import annotations

import torch
from torch import Tensor


def case(n: int, c: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, generator=g, dtype=dtype)
    weak = (2 * torch.randn(n, c, generator=g, dtype=dtype)).softmax(1)
    return logits, weak
