"""Log-probabilities of top-k classes: every backend against fp64, and the operators' contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast.ops import use_backend
from w2s_fast.ops.logprob.api import topk_logprob, topk_logprob_reference, topk_logprob_sample
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget, device

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def upstream(ids: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gradients of both signs; row 0 has none for logp, row 4 none at all."""
    g = torch.Generator().manual_seed(seed)
    up, tail = torch.randn(ids.shape, generator=g), torch.randn(ids.shape[0], generator=g)
    up[:1] = 0
    up[4:5], tail[4:5] = 0, 0
    return up, tail


def compare(backend: str, logits: Tensor, ids: Tensor, **kw: Any) -> Tensor:
    """Values and gradient within budget; returns the gradient."""
    up, up_tail = upstream(ids)
    results = []
    for dtype, function in (
        (logits.dtype, topk_logprob),
        (FP64, topk_logprob_reference),
        (FP32, topk_logprob_reference),
    ):
        z = logits.to(dtype).detach().clone().requires_grad_()
        with use_backend(backend):
            logp, tail = function(z, ids, **kw)
            # A class of probability 0 has log-probability -inf, which no loss survives.
            finite = torch.where(logp.isfinite(), logp * up, 0.0).sum()
            (finite + (tail * up_tail)[tail.isfinite()].sum()).backward()
        results.append((logp, tail, z.grad))
    ours, truth, eager = results
    assert_within_budget(ours[0], truth[0], eager[0], FORWARD, "logp")
    assert_within_budget(ours[1], truth[1], eager[1], FORWARD, "tail")
    assert_within_budget(ours[2], truth[2], eager[2].to(logits.dtype), BACKWARD, "gradient")
    assert bool((logp[ids < 0] == 0).all())
    assert bool((ours[2][4:5] == 0).all()), "no upstream, no gradient"
    return ours[2]


# 2: the special case of other phases; 3, 17: partial tiles; 1003: inside one; 4099: two tiles.
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("v", [2, 3, 17, 1003, 4099])
def test_values_and_gradients(backend: str, v: int, dtype: torch.dtype) -> None:
    if backend == "triton" and v == 4099 and dtype != BF16:
        v = 67
    compare(backend, **topk_logprob_sample(6, v, dtype, device(), seed=v))


@pytest.mark.parametrize("kw", [{"temperature": 2.5}, {"temperature": 0.5}], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_temperature(backend: str, dtype: torch.dtype, kw: dict[str, float]) -> None:
    compare(backend, **topk_logprob_sample(6, 17, dtype, device(), seed=1), **kw)


@pytest.mark.parametrize("softcap", [0.0, 3000.0])
def test_a_temperature_takes_no_logit_past_fp16(backend: str, softcap: float) -> None:
    call = topk_logprob_sample(6, 17, FP16, device(), seed=1)
    call["logits"] *= 130  # up to 3900
    compare(backend, **call, temperature=0.02, softcap=softcap)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_softcap(backend: str, temperature: float) -> None:
    call = topk_logprob_sample(6, 17, FP32, device(), seed=2)
    compare(backend, **call, softcap=4.0, temperature=temperature)


@pytest.mark.parametrize("gap", [40.0, 95.0, 300.0, 2e4])
def test_a_tail_of_almost_no_mass(backend: str, gap: float) -> None:
    """log P(outside the top k) is far below the smallest float's logarithm; its gradient is not."""
    call = topk_logprob_sample(6, 23, FP32, device(), seed=3)
    at = call["ids"].clamp_min(0)[:, :1]
    call["logits"] = call["logits"].scatter(1, at, gap)
    call["ids"][:, 0] = at[:, 0]
    grad = compare(backend, **call)
    outside = torch.ones_like(grad, dtype=torch.bool)
    outside.scatter_(1, call["ids"].clamp_min(0), False)
    assert float(torch.where(outside, grad, 0.0)[1].abs().max()) > 0.01


def test_a_tail_of_almost_all_mass(backend: str) -> None:
    """Its log is near 0, and exact in proportion: no difference of two logarithms."""
    z = torch.randn(6, 1000, generator=torch.Generator().manual_seed(7))
    z[:, 3] -= torch.tensor([0.0, 2.0, 5.0, 10.0, 20.0, 40.0])
    with use_backend(backend):
        tail = topk_logprob(z, torch.full((6, 1), 3))[1]
    truth = torch.log1p(-z.double().softmax(1)[:, 3])
    torch.testing.assert_close(tail.double(), truth, rtol=5e-6, atol=0.0)


def test_masked_vocabulary(backend: str) -> None:
    call = topk_logprob_sample(5, 13, FP32, device(), seed=4)
    call["logits"][torch.rand(5, 13, generator=torch.Generator().manual_seed(0)) < 0.4] = -math.inf
    call["logits"][:, 12] = 1.0
    compare(backend, **call)


def test_every_class_listed_leaves_no_tail(backend: str) -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    ids = torch.tensor([[2, 0, 1]] * 4)
    with use_backend(backend):
        logp, tail = topk_logprob(z, ids)
        logp.sum().backward()
    assert bool((tail == -math.inf).all())
    assert_within_budget(z.grad, 1 - 3 * z.detach().double().softmax(1), z.grad, BACKWARD)


def test_rows_without_upstream_survive_bad_logits(backend: str) -> None:
    z = torch.randn(3, 9, generator=torch.Generator().manual_seed(6))
    z[1] = math.nan
    z.requires_grad_()
    with use_backend(backend):
        logp, tail = topk_logprob(z, torch.tensor([[1], [2], [-1]]))
        assert bool(logp[1].isnan().all()) and bool(logp[[0, 2]].isfinite().all())
        logp[0].sum().backward()
    assert bool((z.grad[1:] == 0).all()) and bool(z.grad[0].isfinite().all())


def test_no_rows(backend: str) -> None:
    z = torch.zeros(0, 5, requires_grad=True)
    with use_backend(backend):
        logp, tail = topk_logprob(z, torch.zeros(0, 2, dtype=torch.int32))
        (logp.sum() + tail.sum()).backward()
    assert logp.shape == (0, 2) and tail.shape == (0,) and z.grad.shape == (0, 5)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_layouts(backend: str, layout: str) -> None:
    call = topk_logprob_sample(5, 11, FP32, device(), seed=7)
    wide = torch.cat([call["logits"], torch.full((5, 3), 9e9)], 1)[:, :11]
    z = wide if layout == "rows" else call["logits"].t().contiguous().t()
    with use_backend(backend):
        for a, b in zip(
            topk_logprob(z, call["ids"]), topk_logprob(call["logits"], call["ids"]), strict=True
        ):
            # CUDA sums by 16-byte pieces of memory: where a row starts decides the order. What
            # torch does with strides is its own affair.
            assert backend in ("cuda", "ref") or torch.equal(a, b)
            assert_within_budget(a, b.double(), b, FORWARD)


@pytest.mark.parametrize("with_tail", [True, False])
def test_gradcheck_and_opcheck(backend: str, with_tail: bool) -> None:
    call = topk_logprob_sample(4, 7, FP64, device(), seed=8)
    z, ids = call["logits"].requires_grad_(), call["ids"]
    with use_backend(backend):

        def function(z: Tensor) -> tuple[Tensor, ...]:
            logp, tail = torch.ops.w2s_fast.topk_logp(z, ids, 5.0, with_tail)[:2]
            return logp, tail

        assert torch.autograd.gradcheck(function, (z,))
        z32 = z.detach().float().requires_grad_()
        args = (z32, ids, 0.0, with_tail)
        torch.library.opcheck(torch.ops.w2s_fast.topk_logp, args)
        _, _, stats, index = torch.ops.w2s_fast.topk_logp(*args)
        up, tail = upstream(ids)
        torch.library.opcheck(
            torch.ops.w2s_fast.topk_logp_backward,
            (up, tail if with_tail else None, z32.detach(), ids, stats, index, 0.0),
        )


def test_compile_fullgraph(backend: str) -> None:
    call = topk_logprob_sample(4, 9, FP32, device(), seed=9)
    z, ids = call["logits"].requires_grad_(), call["ids"]

    def loss(z: Tensor) -> Tensor:
        logp, tail = topk_logprob(z * 1.0, ids, temperature=2.0)
        return logp.sum() + 0.5 * tail.sum()

    with use_backend(backend):
        (eager,) = torch.autograd.grad(loss(z), z)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        (grad,) = torch.autograd.grad(compiled(z), z)
    torch.compiler.reset()
    assert torch.equal(grad, eager)


def test_second_derivative_raises() -> None:
    z = torch.randn(2, 5, dtype=FP64, requires_grad=True)
    logp, _ = topk_logprob(z, torch.tensor([[1], [2]]))
    with pytest.raises(RuntimeError, match="not differentiable twice"):
        (g,) = torch.autograd.grad(logp.sum(), z, create_graph=True)
        g.sum().backward()


def test_bad_input_is_named() -> None:
    z, ids = torch.zeros(3, 5), torch.arange(2).expand(3, 2)
    for args, kw, words in (
        ((z[0], ids), {}, r"logits have shape \(5,\)"),
        ((z.long(), ids), {}, "dtype torch.int64"),
        ((z, ids[:2]), {}, r"ids have shape \(2, 2\)"),
        ((z, ids.float()), {}, "dtype torch.float32; expected integers"),
        ((z, ids + 4), {}, r"ids \[4, 5\] in row 0 is outside the classes"),
        ((z, ids.expand(3, 2).repeat(1, 3)), {}, "K = 6 classes a row of only 5"),
        ((z, ids), {"temperature": 0.0}, "temperature is 0.0"),
        ((z, ids), {"softcap": -1.0}, "softcap is -1.0"),
    ):
        with pytest.raises(w2s_fast.W2SError, match=words):
            topk_logprob(*args, **kw)
