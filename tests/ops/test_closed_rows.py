"""The Triton kernel that corrects rows of a fused head after their chunk, against full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.linear_cases import BF16, FP32
from torch import Tensor

from w2s_fast.ops.fused_linear.chunks import Gradients, HeadInputs, NeedsGrad
from w2s_fast.testing import BACKWARD, assert_within_budget, device

N, D, V = 150, 100, 137  # several tiles in each direction, none of them full

closed_rows = pytest.importorskip(
    "w2s_fast.ops.fused_linear.triton", reason="backend triton is missing"
)


def problem(dtype: torch.dtype, alpha: float = 1.0) -> HeadInputs:
    g = torch.Generator().manual_seed(0)
    hidden, head, bias = (torch.randn(*s, generator=g) for s in ((N, D), (V, D), (V,)))
    parts = (t.to(device(), dtype) for t in (hidden, head / 8, bias))
    return HeadInputs(*parts, memory_mib=None, alpha=alpha)


def added(x: HeadInputs, pull: Tensor, softcap: float, needs: NeedsGrad) -> tuple[Any, ...]:
    """(result, truth, eager) of head and bias, for gradients that were 1 before."""
    grads = Gradients(x, needs, parts=3)
    assert grads.head is not None
    if grads.head.head is not None:
        grads.head.head.fill_(1)
    if grads.head.bias is not None:
        grads.head.bias.fill_(1)
    exact = in_full(x, pull, softcap, torch.float64)
    near = in_full(x, pull, softcap, x.hidden.dtype)
    closed_rows.add_softmax(x, pull, exact[0].float(), softcap, grads)
    return (grads.head.head, exact[1], near[1]), (grads.head.bias, exact[2], near[2])


def in_full(
    x: HeadInputs, pull: Tensor, softcap: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp and both gradients by full logits in one dtype, as eager PyTorch."""
    hidden, head = x.hidden.to(dtype), x.head.to(dtype)
    bias = None if x.bias is None else x.bias.to(dtype)
    u = x.alpha * torch.nn.functional.linear(hidden, head, bias)
    z = softcap * torch.tanh(u / softcap) if softcap else u
    slope = 1 - (z / softcap).square() if softcap else 1.0
    term = pull.to(dtype).unsqueeze(1) * torch.softmax(z, 1) * slope
    return z.logsumexp(1), 1 + term.T @ hidden, 1 + term.sum(0)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_softmax_of_some_rows(dtype: torch.dtype, alpha: float, softcap: float) -> None:
    x = problem(dtype, alpha)
    for count in (0, 1, 64, 65, N):
        pull = torch.zeros(N, device=x.hidden.device)
        pull[torch.randperm(N)[:count]] = torch.linspace(-1.0, 2.0, count, device=pull.device)
        head, bias = added(x, pull, softcap, NeedsGrad(True, True, True))
        assert_within_budget(*head, BACKWARD, "head")
        assert_within_budget(*bias, BACKWARD, "bias")
        if count == 0:
            assert bool((head[0] == 1).all() and (bias[0] == 1).all())


def test_parts_without_a_gradient() -> None:
    pull = torch.ones(N, device=device())
    x = problem(FP32)
    head, bias = added(x, pull, 0.0, NeedsGrad(True, False, True))
    assert head[0] is None
    assert_within_budget(*bias, BACKWARD)
    head, bias = added(x._replace(bias=None), pull, 0.0, NeedsGrad(True, True, False))
    assert bias[0] is None
    assert_within_budget(*head, BACKWARD)
    closed_rows.add_softmax(x, pull, pull, 0.0, Gradients(x, NeedsGrad(True), parts=1))


def test_a_row_of_nan_shows() -> None:
    pull = torch.zeros(N, device=device())
    pull[7] = torch.nan
    head, _ = added(problem(FP32), pull, 0.0, NeedsGrad(True, True, False))
    assert bool(head[0].isnan().all())
