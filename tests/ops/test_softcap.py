"""Soft-capped logits: as exact as tanh itself near 0, and their slope where tanh is nearly 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast.ops import use_backend
from w2s_fast.ops.weak_loss import batch_threshold, weak_loss
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget


def loss_and_gradient(z: Tensor, cap: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Plain PyTorch: a row's loss is the sum of its classes' losses, so every entry counts."""
    u = z.to(dtype).requires_grad_()
    logp = (cap * torch.tanh(u / cap)).log_softmax(1)
    loss = -logp.mean(1)
    (grad,) = torch.autograd.grad(loss.sum(), u)
    return loss.detach(), grad


@pytest.mark.parametrize("cap", [5.0, 30.0, 50.0])
@pytest.mark.parametrize("spread", [1e-4, 0.1, 1.0, 10.0])
def test_loss_and_gradient(backend: str, spread: float, cap: float) -> None:
    z = torch.randn(4, 70, generator=torch.Generator().manual_seed(0)) * spread
    even = torch.full_like(z, 1 / 70)
    with use_backend(backend):
        u = z.clone().requires_grad_()
        loss = w2s_fast.cross_entropy(u, even, softcap=cap, reduction="none")
        loss.sum().backward()
    exact, near = (loss_and_gradient(z, cap, d) for d in (torch.float64, torch.float32))
    assert u.grad is not None
    assert_within_budget(loss, exact[0], near[0], FORWARD)
    assert_within_budget(u.grad, exact[1], near[1], BACKWARD)


@pytest.mark.parametrize("offset", [-30.0, 30.0])
def test_slope_where_tanh_is_nearly_1(backend: str, offset: float) -> None:
    """e^-12 of a slope: a difference from 1 would have two digits."""
    z = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) + offset
    labels = torch.arange(4)
    with use_backend(backend):
        u = z.clone().requires_grad_()
        w2s_fast.cross_entropy(u, labels, softcap=5.0, reduction="sum").backward()
    x = z.double().requires_grad_()
    torch.nn.functional.cross_entropy(5 * torch.tanh(x / 5), labels, reduction="sum").backward()
    assert u.grad is not None and x.grad is not None
    if backend == "cuda":
        # Its slope is made from the capped logit, whose last bit is 2^-24 of the cap.
        assert (u.grad - x.grad).abs().max() < 2**-22
    else:
        assert_within_budget(u.grad, x.grad, x.grad.float(), BACKWARD)


@pytest.mark.parametrize("v", [2, 3])
def test_the_median_row_is_at_its_threshold(backend: str, v: int) -> None:
    """Threshold and scores come from one kernel: another one's tanh may differ in its last bit."""
    for seed in range(12):
        z = 3 * torch.randn(5, v, generator=torch.Generator().manual_seed(seed))
        labels = torch.zeros(5, dtype=torch.int64)
        rule = {"rule": "median", "aux": 0.5, "softcap": 30.0}
        with use_backend(backend):
            at = batch_threshold(z, labels, "median", softcap=30.0)
            for more in ({}, {"threshold": at}):
                s = weak_loss(z, labels, return_stats=True, **rule, **more).stats
                assert s is not None
                above = (s.hard_class == 0) if v == 2 else (s.coefficient > 0)
                assert int(above.sum()) == 3, f"seed {seed}"
