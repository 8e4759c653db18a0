"""Cases of the losses of logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def case(n: int, c: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, generator=g, dtype=dtype)
    weak = (2 * torch.randn(n, c, generator=g, dtype=dtype)).softmax(1)
    return logits, weak


def differentiate(f: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    z = logits.clone().requires_grad_()
    value = f(z)
    value.backward()
    assert z.grad is not None
    return value.detach(), z.grad


def quantile_of(x: Tensor, q: float) -> float:
    """Linear interpolation between order statistics, by hand."""
    ordered, at = sorted(x.tolist()), q * (len(x) - 1)
    low = math.floor(at)
    high = min(low + 1, len(x) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
