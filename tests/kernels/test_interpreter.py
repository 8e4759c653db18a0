"""What the tests mend in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.triton_interpreter import fused, to_bfloat16
from torch import Tensor


def bits_of(x: Tensor) -> Tensor:
    return torch.from_numpy(to_bfloat16(x.numpy()).view(np.int16)).view(torch.bfloat16)


def test_bfloat16_is_rounded_as_by_torch() -> None:
    every = torch.arange(-(2**31), 2**31, 4999, dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16) + 0x8000
    for x in (every.view(torch.float32), ties.view(torch.float32)):
        torch.testing.assert_close(bits_of(x), x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_fused_products_are_rounded_once() -> None:
    x = np.float32(1 + 2**-12)
    # x x = 1 + 2^-11 + 2^-24, of which a product in fp32 loses the last term.
    assert float(fused(x, x, np.float32(-1 - 2**-11))) == 2**-24 != float(x * x - (1 + 2**-11))
    assert np.isnan(fused(np.float32(np.inf), np.float32(0), x))
    triton = pytest.importorskip("triton", reason="backend triton is missing")
    builder = triton.runtime.interpreter.InterpreterBuilder
    assert builder.create_fma.__wrapped__ is not None


def test_kernels_use_it() -> None:
    triton = pytest.importorskip("triton", reason="backend triton is missing")
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled in this run")
    from w2s_fast import cross_entropy
    from w2s_fast.ops import use_backend

    z = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    (made,) = _gradient(cross_entropy, z, use_backend("triton"))
    (plain,) = _gradient(cross_entropy, z, use_backend("ref"))
    assert (made == plain).float().mean() > 0.95  # cut off, half of them would differ


def _gradient(op, z: Tensor, backend) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    leaf = z.clone().requires_grad_()
    with backend:
        loss = op(leaf, torch.tensor([1, 2, 3, 4]))
    return torch.autograd.grad(loss, [leaf])


def test_integers_that_overflow_are_seen() -> None:
    """The interpreter checks every operation, at less cost with our own check."""
    triton = pytest.importorskip("triton", reason="backend triton is missing")
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels are compiled in this run")
    import triton.language as tl

    semantic = triton.runtime.interpreter.interpreter_semantic

    def number(x: int) -> Any:
        handle = triton.runtime.interpreter.TensorHandle(np.array([x], np.int32), tl.int32)
        return tl.core.tensor(handle, tl.int32)

    assert semantic.add(number(2**31 - 2), number(1), True).handle.data == 2**31 - 1
    for operation, x, y in (
        (semantic.add, 2**31 - 1, 1), (semantic.sub, -(2**31), 1), (semantic.mul, 2**16, 2**15),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="int32 overflow detected in"):
            operation(number(x), number(y), True)
