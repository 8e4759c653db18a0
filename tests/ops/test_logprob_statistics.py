"""Differentiable statistics of rows: every backend against fp64, and the operators' contract."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from w2s_fast.errors import W2SError
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.logprob import statistics
from w2s_fast.ops.logprob.api import (
    RowStats,
    topk_logprob,
    topk_logprob_reference,
    topk_logprob_sample,
)
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget, device

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
WITH_STATS = {"return_stats": "differentiable"}
FIELDS = ("lse", "max_prob", "entropy", "margin")


def definition(logits: Tensor, temperature: float = 1.0, softcap: float = 0.0) -> list[Tensor]:
    """The four statistics by their definitions, in the dtype of the logits."""
    z = softcap * torch.tanh(logits / softcap) if softcap else logits
    z = z / temperature
    p, two = z.softmax(1), z.topk(2, 1)[0]
    entropy = -(p * z.log_softmax(1).clamp_min(-1e9)).sum(1)  # 0 log 0 = 0, its gradient too
    return [z.logsumexp(1), p.amax(1), entropy, two[:, 0] - two[:, 1]]


def of(stats: RowStats) -> list[Tensor]:
    return [getattr(stats, name) for name in FIELDS]


def weighted(outputs: list[Tensor], seed: int = 0) -> Tensor:
    """One number of which every output gets another gradient of either sign; row 4 has none."""
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=FP64)
    for x in outputs:
        up = torch.randn(x.shape, generator=g)
        up[4:5] = 0
        total = total + torch.where(x.isfinite(), x * up, 0.0).double().sum()
    return total


def compare(backend: str, logits: Tensor, ids: Tensor, **kw: Any) -> Tensor:
    """Values and gradient within budget; returns the gradient."""
    results = []
    for dtype in (None, FP64, FP32):  # ours, the definition in fp64, the definition in fp32
        z = logits.to(dtype or logits.dtype).detach().clone().requires_grad_()
        with use_backend(backend):
            if dtype is None:
                logp, tail, stats = topk_logprob(z, ids, **kw, **WITH_STATS)
                out = [logp, tail, *of(stats)]
            else:
                out = [*topk_logprob_reference(z, ids, **kw), *definition(z, **kw)]
            (grad,) = torch.autograd.grad(weighted(out), z)
        results.append((out, grad))
    ours, truth, eager = results
    for name, a, t, b in zip(("logp", "tail", *FIELDS), ours[0], truth[0], eager[0], strict=True):
        assert_within_budget(a, t, b, FORWARD, name)
    assert_within_budget(ours[1], truth[1], eager[1].to(logits.dtype), BACKWARD, "gradient")
    assert bool((ours[1][4:5] == 0).all()), "no upstream, no gradient"
    return ours[1]


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=str)
@pytest.mark.parametrize("v", [2, 3, 17, 1003])
def test_values_and_gradients(backend: str, v: int, dtype: torch.dtype) -> None:
    call = topk_logprob_sample(6, v, dtype, device(), seed=v)
    call["logits"][1] += torch.linspace(0, 0.5, v, dtype=dtype)  # the definition has no tie rule
    compare(backend, **call)


@pytest.mark.parametrize("kw", [{"temperature": 2.5}, {"softcap": 4.0}], ids=str)
def test_temperature_and_softcap(backend: str, kw: dict[str, float]) -> None:
    call = topk_logprob_sample(6, 17, FP32, device(), seed=2)
    call["logits"][1] += torch.linspace(0, 0.5, 17)
    compare(backend, **call, **kw)


def test_extreme_logits(backend: str) -> None:
    call = topk_logprob_sample(6, 23, FP32, device(), seed=3)
    call["logits"] = call["logits"] * torch.tensor([1e4, 1e-4, 1.0, 1.0, 1.0, 9.0])[:, None]
    call["logits"][1] += torch.linspace(0, 0.5, 23)
    compare(backend, **call)


def test_masked_vocabulary(backend: str) -> None:
    call = topk_logprob_sample(6, 13, FP32, device(), seed=4)
    call["logits"][torch.rand(6, 13, generator=torch.Generator().manual_seed(0)) < 0.4] = -math.inf
    call["logits"][:, 11:] = torch.tensor([0.5, 1.0])
    grad = compare(backend, **call)
    assert bool((grad[call["logits"] == -math.inf] == 0).all())


def test_ties_take_the_first_classes(backend: str) -> None:
    z = torch.tensor([[0.0, 3.0, 1.0, 3.0, 3.0]], requires_grad=True)
    with use_backend(backend):
        stats = topk_logprob(z, torch.tensor([[0]]), **WITH_STATS)[2]
        (grad,) = torch.autograd.grad(stats.margin.sum(), z)
    assert float(stats.margin) == 0 and int(stats.argmax) == 1
    assert grad.tolist() == [[0.0, 1.0, 0.0, -1.0, 0.0]]


def test_a_cap_makes_impossible_classes_possible(backend: str) -> None:
    z = torch.tensor([[3.0, -math.inf, -math.inf], [-math.inf, 3.0, -math.inf]])
    z.requires_grad_()
    with use_backend(backend):
        stats = topk_logprob(z, torch.zeros(2, 1, dtype=torch.int64), softcap=4.0, **WITH_STATS)[2]
        (grad,) = torch.autograd.grad(stats.margin.sum(), z)
    capped = 4 * math.tanh(0.75)
    torch.testing.assert_close(stats.margin, torch.full((2,), capped + 4))
    slope = 1 - (capped / 4) ** 2
    torch.testing.assert_close(grad, slope * torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("softcap", [0.0, 4.0])
def test_one_class_has_no_margin(backend: str, softcap: float) -> None:
    z = torch.zeros(2, 1, requires_grad=True)
    with use_backend(backend):
        ids = torch.zeros(2, 1, dtype=torch.int64)
        stats = topk_logprob(z, ids, softcap=softcap, **WITH_STATS)[2]
        (grad,) = torch.autograd.grad(stats.margin.sum() + stats.entropy.sum(), z)
    assert bool((stats.margin == math.inf).all()) and bool((grad == 0).all())


def test_rows_without_upstream_survive_bad_logits(backend: str) -> None:
    z = torch.randn(4, 9, generator=torch.Generator().manual_seed(6))
    z[1], z[2], z[3, 4] = math.nan, -math.inf, math.inf
    z.requires_grad_()
    with use_backend(backend):
        stats = topk_logprob(z, torch.tensor([[1], [2], [1], [-1]]), **WITH_STATS)[2]
        for value in of(stats):
            assert bool(value[1:].isnan().all()) and bool(value[0].isfinite())
        (grad,) = torch.autograd.grad(sum(value[0] for value in of(stats)), z)
    assert bool((grad[1:] == 0).all()) and bool(grad[0].isfinite().all())


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("chunk", [3, 8, 16])  # several; one, made again; one, kept
@pytest.mark.parametrize("kw", [{}, {"temperature": 1.7, "softcap": 6.0}], ids=str)
def test_fused_head(backend: str, chunk: int, kw: dict[str, float], dtype: torch.dtype) -> None:
    n, d, v = 8, 16, 67
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(s, generator=g).to(dtype) for s in ((n, d), (v, d), (v,))]
    ids = torch.stack([torch.randperm(v, generator=g)[:4] for _ in range(n)])
    ids[1, 2], ids[5] = -1, -1
    results = []
    for kind in (None, FP64, dtype):
        x = [t.to(kind or dtype, copy=True).requires_grad_() for t in parts]
        with use_backend(backend):
            if kind is None:
                memory_mib = chunk * v * dtype.itemsize / (1 << 20)
                logp, tail, stats = linear_topk_logprob(
                    *x[:2], ids, bias=x[2], memory_mib=memory_mib, **kw, **WITH_STATS
                )
                out = [logp, tail, *of(stats)]
            else:
                z = linear(*x)
                z = z if kind == FP64 else z.float()
                out = [*topk_logprob_reference(z, ids, **kw), *definition(z, **kw)]
            results.append((out, torch.autograd.grad(weighted(out), x)))
    ours, truth, eager = results
    for name, a, t, b in zip(("logp", "tail", *FIELDS), ours[0], truth[0], eager[0], strict=True):
        assert_within_budget(a, t, b, FORWARD, name)
    for name, a, t, b in zip(("hidden", "head", "bias"), *(r[1] for r in results), strict=True):
        assert_within_budget(a, t, b, BACKWARD, f"gradient of {name}")


def test_tokens_masks_and_sequences(backend: str) -> None:
    g = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(2, 3, 8, generator=g), torch.randn(19, 8, generator=g)
    tokens = torch.tensor([[3, -100, 18], [0, 7, 7]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    counted = torch.tensor([[True, False, False], [True, True, True]])
    hidden[0, 1], hidden[0, 2] = math.nan, math.inf  # never touched
    results = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        with use_backend(backend):
            if ours:
                total, stats = linear_logprob(h, w, tokens, mask=mask, **WITH_STATS)
                out = [total, *of(stats)]
                assert torch.equal(stats.argmax >= 0, counted)
                right = (stats.argmax == tokens).sum()
            else:
                z = h.double()[counted] @ w.double().t()
                logp = z.log_softmax(1).gather(1, tokens[counted][:, None])[:, 0]
                total = torch.stack([logp[0], logp[1:].sum()])
                empty = torch.zeros(2, 3, dtype=FP64)
                out = [total, *(empty.masked_scatter(counted, x) for x in definition(z))]
                assert int(right) == int((z.argmax(1) == tokens[counted]).sum())
            results.append((out, torch.autograd.grad(weighted(out), (h, w))))
    ours, truth = results
    for a, t in zip((*ours[0], *ours[1]), (*truth[0], *truth[1]), strict=True):
        torch.testing.assert_close(a.double(), t.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal((ours[1][0] != 0).any(-1), counted)


def test_the_square_of_lse_is_the_z_loss(backend: str) -> None:
    import w2s_fast

    z = 3 * torch.randn(5, 11, generator=torch.Generator().manual_seed(7))
    y, grads = torch.tensor([1, 3, 0, 10, 2]), []
    for apart in (True, False):
        x = z.clone().requires_grad_()
        with use_backend(backend):
            if apart:
                logp, _, stats = topk_logprob(x, y[:, None], **WITH_STATS)
                loss = -logp.sum() + 0.1 * stats.lse.square().sum()
            else:
                loss = w2s_fast.cross_entropy(x, y, z_loss=0.1, reduction="sum")
            grads.append((loss, *torch.autograd.grad(loss, x)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _saved(function: Any) -> int:
    """Bytes of the tensors that autograd saves during a call, inputs included."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.numel() * t.itemsize
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(storages.values())


def test_only_differentiable_statistics_cost_memory() -> None:
    n, v = 6, 50
    hidden = torch.randn(n, 4, requires_grad=True)
    head = torch.randn(v, 4, requires_grad=True)
    tokens, budget = torch.arange(n), 2 * v * 4 / (1 << 20)

    def step(return_stats: Any) -> Any:
        return linear_logprob(hidden, head, tokens, memory_mib=budget, return_stats=return_stats)

    plain = _saved(lambda: step(False))
    assert _saved(lambda: step(True)) == plain
    # A class id of 8 bytes a row, and which rows count for each statistic: nothing of size V.
    assert plain < _saved(lambda: step("differentiable")) <= plain + n * (8 + 5 * 8)


def test_blocks_bound_the_memory_and_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = statistics._gradient_of_values, []
    monkeypatch.setattr(
        statistics, "_gradient_of_values", lambda z, *a: (sizes.append(len(z)), real(z, *a))[1]
    )
    z = torch.randn(7, 33, generator=torch.Generator().manual_seed(8)).bfloat16()
    ids, grads = torch.arange(7)[:, None], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for block in (1, 70, 1 << 20):
        monkeypatch.setattr(statistics, "_BLOCK", block)
        x = z.clone().requires_grad_()
        logp, tail, stats = topk_logprob(x, ids, **WITH_STATS)
        out = [logp, tail, *of(stats)]
        grads.append([*out, *torch.autograd.grad(weighted(out), x)])
    assert all(
        torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True)
    )
    assert sizes == [1] * 7 + [2, 2, 2, 1] + [7]


def test_fp16_gradients_are_rounded_after_the_loss_scale() -> None:
    z = (0.1 * torch.randn(4, 600, generator=torch.Generator().manual_seed(9))).half()
    results = []
    for dtype in (FP16, FP64):
        x = z.to(dtype).requires_grad_()
        stats = topk_logprob(x, torch.zeros(4, 1, dtype=torch.int64), **WITH_STATS)[2]
        results.append(torch.autograd.grad(2.0**16 * 1e-4 * stats.entropy.sum(), x)[0])
    ours, truth = results
    assert_within_budget(ours, truth, truth.half(), BACKWARD)


def test_a_tail_that_was_not_asked_for_has_no_gradient() -> None:
    hidden, head = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    args = (hidden, head, None, torch.tensor([[1], [2], [3]]), 0.0, False, 1.0, False, 1.0, False)
    _, tail, *_ = torch.ops.w2s_fast.linear_topk_logp_values(*args)
    assert bool((tail == 0).all())
    assert torch.autograd.grad(tail.sum(), head, allow_unused=True) == (None,)


def test_upstream_of_zero_size() -> None:
    head = torch.randn(5, 4, requires_grad=True)
    hidden = torch.zeros(0, 4, requires_grad=True)
    out, stats = linear_logprob(hidden, head, torch.zeros(0, dtype=torch.int64), **WITH_STATS)
    (out.sum() + stats.entropy.sum() + stats.margin.sum()).backward()
    assert out.shape == stats.margin.shape == (0,) and bool((head.grad == 0).all())


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_frozen_parts_get_no_gradient(frozen: str) -> None:
    x = {"hidden": torch.randn(4, 6), "head": torch.randn(11, 6)}
    leaf = {k: t.requires_grad_(k != frozen) for k, t in x.items()}
    stats = linear_logprob(leaf["hidden"], leaf["head"], torch.arange(4), **WITH_STATS)[1]
    stats.entropy.sum().backward()
    assert leaf[frozen].grad is None
    assert all(bool((t.grad != 0).any()) for k, t in leaf.items() if k != frozen)


def test_second_backward_is_the_first_one_again() -> None:
    hidden, head = torch.randn(4, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    for budget in (64, 2 * 11 * 4 / (1 << 20)):
        out = linear_logprob(hidden, head, torch.arange(4), memory_mib=budget, **WITH_STATS)
        total = out[0].sum() + out[1].entropy.sum()
        one = torch.autograd.grad(total, (hidden, head), retain_graph=True)
        two = torch.autograd.grad(total, (hidden, head))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_compile_fullgraph() -> None:
    hidden, head = torch.randn(6, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    tokens = torch.tensor([[1, 2, -100], [4, 5, 6]])

    def step(hidden: Tensor, head: Tensor) -> Tensor:
        out, stats = linear_logprob(hidden.view(2, 3, 8), head, tokens, **WITH_STATS)
        dense = topk_logprob(hidden * 2.0, tokens.view(6, 1).clamp_min(0), **WITH_STATS)[2]
        return out.sum() + sum((i - 2.5) * x.sum() for i, x in enumerate((*of(stats), *of(dense))))

    eager = step(hidden, head)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(hidden, head)
    grads = [torch.autograd.grad(y, (hidden, head)) for y in (eager, compiled)]
    torch.compiler.reset()
    for a, b in zip((eager, *grads[0]), (compiled, *grads[1]), strict=True):
        assert_within_budget(b, a.double(), a, BACKWARD)


def test_autocast_computes_as_a_linear_layer_would() -> None:
    hidden, head = torch.randn(4, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    tokens = torch.arange(4)
    with torch.autocast("cpu", dtype=BF16):
        stats = linear_logprob(hidden, head, tokens, **WITH_STATS)[1]
    low = linear_logprob(hidden.bfloat16(), head.bfloat16(), tokens, **WITH_STATS)[1]
    assert torch.equal(stats.entropy, low.entropy) and torch.equal(stats.margin, low.margin)
    stats.entropy.sum().backward()
    assert head.grad.dtype == FP32


@pytest.mark.slow
def test_gradcheck_and_opcheck() -> None:
    g = torch.Generator().manual_seed(10)
    x = [torch.randn(s, generator=g, dtype=FP64).requires_grad_() for s in ((5, 4), (7, 4), (7,))]
    ids = torch.tensor([[0, 1], [2, -1], [6, 3], [-1, -1], [5, 4]])
    budget = 2 * 7 * 8 / (1 << 20)

    def function(hidden: Tensor, head: Tensor, bias: Tensor) -> Any:
        logp, tail, stats = linear_topk_logprob(
            hidden, head, ids, bias=bias, memory_mib=budget, temperature=1.5, softcap=4.0,
            **WITH_STATS,
        )  # fmt: skip
        return logp, tail, *of(stats)

    assert torch.autograd.gradcheck(function, tuple(x))
    y = [t.detach().float().requires_grad_() for t in x]
    ops = torch.ops.w2s_fast
    for keep in (False, True):
        call = (*y, ids, 3.0, True, 1.0, False, 0.5, keep)
        torch.library.opcheck(ops.linear_topk_logp_values, call)
        logp, tail, values, *record = ops.linear_topk_logp_values(*call)
        upstream = [t.detach() for t in (logp, tail, values)]
        back = (*upstream, *(t.detach() for t in y), ids, *record, 3.0, 1.0, False, 0.5)
        torch.library.opcheck(ops.linear_topk_logp_values_backward, (*back, [True, False, True]))
    z = torch.randn(5, 7, generator=g, requires_grad=True)
    torch.library.opcheck(ops.topk_logp_values, (z, ids, 3.0))
    logp, tail, values, *record = ops.topk_logp_values(z, ids, 3.0)
    upstream = [t.detach() for t in (logp, tail, values)]
    torch.library.opcheck(ops.topk_logp_values_backward, (*upstream, z.detach(), ids, *record, 3.0))


@pytest.mark.parametrize("fused", [False, True])
def test_second_derivative_raises(fused: bool) -> None:
    z, eye = torch.randn(2, 5, requires_grad=True), torch.eye(5)
    ids = torch.tensor([[1], [2]])
    call = (
        linear_topk_logprob(z, eye, ids, **WITH_STATS)
        if fused
        else topk_logprob(z, ids, **WITH_STATS)
    )
    with pytest.raises(RuntimeError, match="not differentiable twice"):
        (g,) = torch.autograd.grad(call[2].entropy.sum(), z, create_graph=True)
        g.sum().backward()


def test_another_word_is_refused() -> None:
    z, ids = torch.zeros(3, 5), torch.zeros(3, 1, dtype=torch.int64)
    for call in (
        lambda word: topk_logprob(z, ids, return_stats=word),
        lambda word: linear_topk_logprob(z, z, ids.clamp_max(2), return_stats=word),
        lambda word: linear_logprob(z, z, ids[:, 0], return_stats=word),
    ):
        with pytest.raises(W2SError, match="return_stats is 'entropy'; expected True, False or"):
            call("entropy")
        assert call(True)[-1].margin is None and not call(True)[-1].entropy.requires_grad
