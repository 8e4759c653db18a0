"""Training steps under a loss scaler: those that overflow are skipped, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import w2s_fast

N, V, D = 6, 300, 16
START = 2.0**19
Loss = Callable[[Tensor, Tensor], Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def train_autocast(loss: Loss, x: Tensor) -> tuple[Tensor, list[float]]:
    """Weights after some steps under fp16 autocast and torch's GradScaler, and the scales."""
    w = (normal(V, D, seed=5) * 0.1).requires_grad_()
    step = torch.optim.SGD([w], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=START, growth_interval=3)
    seen = []
    for _ in range(12):
        step.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = loss(x, w)
        scaler.scale(value).backward()
        scaler.step(step)
        scaler.update()
        seen.append(scaler.get_scale())
    return w.detach(), seen


def train_half(loss: Loss, x: Tensor) -> tuple[Tensor, list[float]]:
    """The same with fp16 weights, fp32 masters and a dynamic scale: the arithmetic of DeepSpeed's
    fp16 optimizer, which has none on CPUs."""
    master, scale, good, seen = normal(V, D, seed=5) * 0.1, START, 0, []
    for _ in range(12):
        w = master.half().requires_grad_()
        (loss(x.half(), w).float() * scale).backward()
        assert w.grad is not None
        if bool(w.grad.isfinite().all()):
            master -= 0.5 * w.grad.float() / scale
            good += 1
            scale *= 2.0 if good % 3 == 0 else 1.0
        else:
            scale, good = scale / 2, 0
        seen.append(scale)
    return master, seen


@pytest.mark.parametrize("train", [train_autocast, train_half])
@pytest.mark.parametrize("linear", [False, True], ids=["logits", "head"])
def test_steps_that_overflow_are_skipped_and_no_others(
    linear: bool, train: Callable[..., tuple[Tensor, list[float]]]
) -> None:
    ids, x = normal(N, V, seed=1).argmax(1), normal(N, D, seed=7)

    def ours(x: Tensor, w: Tensor) -> Tensor:
        if linear:
            return w2s_fast.linear_cross_entropy(x, w, ids, memory_mib=2 * V * 2 / 2**20)
        return w2s_fast.cross_entropy(F.linear(x, w), ids)

    (actual, scales), (expected, wanted) = (
        train(loss, x) for loss in (ours, lambda x, w: F.cross_entropy(F.linear(x, w).float(), ids))
    )
    assert scales == wanted
    assert min(wanted) < START, "no step overflowed: the test shows nothing"
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-4)
