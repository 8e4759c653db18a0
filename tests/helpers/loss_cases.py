"""Cases of the losses of logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from w2s_fast.losses.policy import make_policy_loss


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


def evidential_by_hand(
    logits: Tensor, weak: Tensor, frac: float, kl: float = 1.0, aux: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Row losses (n,) and gradients (n, C) of the evidential loss past its warm-up, class by class,
    with the Dirichlets of torch."""
    from torch.distributions import Dirichlet, kl_divergence

    z = logits.clone().requires_grad_()
    n, c = z.shape
    own = torch.eye(c, dtype=z.dtype)[logits.argmax(1)]
    target = (1 - aux) * weak + aux * own
    alpha = 1 + z.exp()
    rows = torch.zeros(n, dtype=z.dtype)
    for k in range(c):
        wrong = torch.where(torch.arange(c) == k, torch.ones_like(alpha), alpha)
        divergence = kl_divergence(Dirichlet(wrong), Dirichlet(torch.ones_like(alpha)))
        rows = rows + target[:, k] * (-Dirichlet(alpha).mean[:, k].log() + kl * frac * divergence)
    (grad,) = torch.autograd.grad(rows.sum(), z)
    return rows.detach(), grad


def policy_loss(name: str) -> Any:
    """A policy loss of ``POLICY_LOSSES``, with what it cannot do without."""
    return make_policy_loss(f"{name}:max_length=3" if name == "dr_grpo" else name)
