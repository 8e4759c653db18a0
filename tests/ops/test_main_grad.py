"""A head's gradient that is added to a buffer: the sums of autograd, and no gradient beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import w2s_fast
from w2s_fast import W2SError
from w2s_fast.testing import BACKWARD, assert_within_budget

N, D, V = 24, 8, 40
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
BUDGETS = {"one chunk": 64.0, "chunks": 5 * V * 2 / 2**20}
LATE = {"aux": 0.4, "threshold": "median"}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(N) * 7 % V


def inputs(dtype: torch.dtype, wide: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Hidden states and head, rounded to ``dtype`` and stored in ``wide``."""
    hidden, head = normal(N, D, seed=1).to(dtype), normal(V, D, seed=2).to(dtype)
    wide = wide or dtype
    return hidden.to(wide).requires_grad_(), head.to(wide).requires_grad_()


def gradients(
    dtype: torch.dtype, wide: torch.dtype | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """What autograd gives without a buffer, of hidden states and head."""
    hidden, head = inputs(dtype, wide)
    loss = w2s_fast.linear_cross_entropy(hidden, head, LABELS, **options)
    loss.backward(torch.linspace(0.5, 2.0, loss.numel()).to(loss.dtype).view_as(loss))
    assert hidden.grad is not None and head.grad is not None
    return hidden.grad, head.grad


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=str)
@pytest.mark.parametrize("memory_mib", BUDGETS.values(), ids=list(BUDGETS))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_backward_adds_to_the_buffer(dtype: torch.dtype, memory_mib: float, reduction: str) -> None:
    options = LATE | {"memory_mib": memory_mib, "reduction": reduction}
    start = normal(V, D, seed=3).to(FP64 if dtype == FP64 else FP32)
    buffer = start.clone()
    hidden, head = inputs(dtype)
    loss = w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=buffer, **options)
    assert torch.equal(buffer, start), "nothing is known before backward"
    loss.backward(torch.linspace(0.5, 2.0, loss.numel()).to(loss.dtype).view_as(loss))
    assert head.grad is None and hidden.grad is not None
    exact = gradients(dtype, FP64, **options)
    eager = gradients(dtype, **options)
    sums = start.double() + exact[1], (start + eager[1]).to(start.dtype)
    assert_within_budget(buffer, *sums, BACKWARD, "head")
    assert_within_budget(hidden.grad, exact[0], eager[0], BACKWARD, "hidden")


def test_micro_batches_are_summed_in_fp32() -> None:
    """64 equal gradients in bf16: a bf16 sum stops growing, the buffer does not round at all."""
    hidden, head = inputs(BF16)
    buffer = torch.zeros(V, D)
    w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=buffer).backward()
    one = buffer.clone()
    for _ in range(63):
        w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=buffer).backward()
    torch.testing.assert_close(buffer, 64 * one, rtol=1e-5, atol=1e-6)


def test_a_second_backward_adds_again() -> None:
    hidden, head = inputs(FP32)
    buffer = torch.zeros(V, D)
    loss = w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=buffer)
    loss.backward(retain_graph=True)
    one = buffer.clone()
    loss.backward()
    torch.testing.assert_close(buffer, 2 * one)


class NoHeadSized(TorchDispatchMode):
    """Fails where an operation allocates a tensor of the size of the head."""

    def __init__(self, *allowed: Tensor) -> None:
        super().__init__()
        self.allowed = {t.untyped_storage().data_ptr() for t in allowed}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().nbytes() >= V * D * 4:
            assert out.untyped_storage().data_ptr() in self.allowed, func
        return out


def test_no_gradient_is_allocated() -> None:
    hidden, head = inputs(FP32)
    buffer = torch.zeros(V, D)
    loss = w2s_fast.linear_cross_entropy(
        hidden, head, LABELS, main_grad=buffer, memory_mib=5 * V * 4 / 2**20
    )
    with NoHeadSized(head, buffer):
        loss.backward()
    hidden, head = inputs(FP32)
    with NoHeadSized(head, buffer), pytest.raises(AssertionError):
        w2s_fast.linear_cross_entropy(hidden, head, LABELS, memory_mib=5 * V * 4 / 2**20).backward()


class MegatronParameter(nn.Parameter):
    main_grad: Tensor
    grad_added_to_main_grad: bool


def test_the_attribute_of_the_parameter() -> None:
    """True finds ``main_grad``; a head with Megatron's flag gets zeros, for its hooks to run."""
    expected = gradients(FP32)[1] / 0.5
    hidden, head = inputs(FP32)
    head.main_grad = torch.zeros(V, D)
    w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=True).backward()
    torch.testing.assert_close(head.main_grad, expected)
    assert head.grad is None and not hasattr(head, "grad_added_to_main_grad")

    hidden, head = inputs(FP32)
    head.main_grad, head.grad_added_to_main_grad = torch.zeros(V, D), False
    hooks = []
    head.register_post_accumulate_grad_hook(lambda p: hooks.append(p.grad.clone()))
    w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=True).backward()
    torch.testing.assert_close(head.main_grad, expected)
    assert head.grad_added_to_main_grad is True
    assert len(hooks) == 1 and not hooks[0].any()

    hidden, head = inputs(FP32)
    made = torch.zeros(V, D)
    head.get_main_grad = lambda: made
    w2s_fast.LMHeadLoss(_Head(head))(hidden, LABELS, main_grad=True).backward()
    torch.testing.assert_close(made, expected)


class _Head(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach())
        self.weight.get_main_grad = weight.get_main_grad  # type: ignore[attr-defined]
        self.bias = None


def test_a_frozen_head_leaves_the_buffer() -> None:
    hidden, head = inputs(FP32)
    buffer = torch.zeros(V, D)
    frozen, bias = head.detach(), torch.zeros(V, requires_grad=True)
    w2s_fast.linear_cross_entropy(hidden, frozen, LABELS, bias=bias, main_grad=buffer).backward()
    assert not buffer.any() and hidden.grad is not None
    assert bias.grad is not None and bias.grad.any()


def test_under_autocast_the_buffer_is_that_of_the_parameter() -> None:
    hidden, head = inputs(FP32)
    buffer = torch.zeros(V, D)
    with torch.autocast("cpu", BF16):
        w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=buffer).backward()
    assert head.grad is None
    torch.testing.assert_close(buffer, gradients(FP32)[1] / 0.5, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (torch.zeros(V, D + 1), r"main_grad has shape \(40, 9\).*expected \(40, 8\)"),
        (torch.zeros(V, D, dtype=BF16), "dtype torch.bfloat16.*in torch.float32"),
        (torch.zeros(V, D, requires_grad=True), "requires_grad=True; expected"),
        (True, "main_grad is True but head.main_grad is None; expected a tensor"),
    ],
    ids=["shape", "dtype", "leaf", "no attribute"],
)
def test_a_wrong_buffer_is_an_error(buffer: Any, message: str) -> None:
    hidden, head = inputs(FP32)
    with pytest.raises(W2SError, match=message):
        w2s_fast.linear_cross_entropy(hidden, head, LABELS, main_grad=buffer)


def test_transforms_are_refused() -> None:
    hidden, head = inputs(FP32)
    buffer = torch.zeros(V, D)
    with pytest.raises(W2SError, match="main_grad is for eager calls.*expected main_grad=False"):
        torch.func.grad(
            lambda w: w2s_fast.linear_cross_entropy(hidden.detach(), w, LABELS, main_grad=buffer)
        )(head.detach())


@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse_kl"])
@pytest.mark.parametrize("memory_mib", BUDGETS.values(), ids=list(BUDGETS))
def test_a_teacher_of_heads_adds_to_the_buffer(divergence: str, memory_mib: float) -> None:
    scale = torch.tensor(1.5, requires_grad=True)
    terms = [(scale, normal(N, 5, seed=4), normal(V, 5, seed=5))]
    buffer, found = torch.ones(V, D), []
    for into in (buffer, False):
        hidden, head = inputs(FP32)
        loss = w2s_fast.linear_cross_entropy(
            hidden, head, teacher=terms, divergence=divergence, main_grad=into,
            memory_mib=memory_mib,
        )  # fmt: skip
        grads = torch.autograd.grad(loss, (hidden, head, scale), allow_unused=True)
        found.append((buffer - 1 if grads[1] is None else grads[1], grads[0], grads[2]))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
