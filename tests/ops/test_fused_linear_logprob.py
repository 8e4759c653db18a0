"""Log-probabilities from hidden states and a head, against full logits in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from w2s_fast.errors import W2SError
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear import gemm, head_gradient
from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
from w2s_fast.ops.logprob.api import topk_logprob_reference
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64
_MIB = 1 << 20


def inputs(n: int, d: int, v: int, seed: int, dtype: torch.dtype = FP32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g)
    head = torch.randn(v, d, generator=g)
    bias = torch.randn(v, generator=g)
    return {k: x.to(dtype) for k, x in (("hidden", hidden), ("head", head), ("bias", bias))}


def rows(k: int, v: int, dtype: torch.dtype) -> float:
    """The budget that holds k rows of logits."""
    return k * v * dtype.itemsize / _MIB


def leaves(x: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: t.to(dtype, copy=True).requires_grad_() for k, t in x.items()}


def compare(function: Any, oracle: Any, x: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Outputs and gradients: ours in ``dtype``, eager in ``dtype``, the truth in fp64."""
    g = torch.Generator().manual_seed(99)
    results = []
    for call, kind in ((function, dtype), (oracle, FP64), (oracle, dtype)):
        leaf = leaves(x, kind)
        outs = call(**leaf)
        g.manual_seed(99)
        total = sum((o.double() * torch.randn(o.shape, generator=g)).sum() for o in outs)
        results.append((outs, torch.autograd.grad(total, list(leaf.values()))))
    ours, truth, eager = results
    for name, a, t, b in zip("0123", ours[0], truth[0], eager[0], strict=False):
        assert_within_budget(a, t, b, FORWARD, f"output {name}")
    for name, a, t, b in zip(x, ours[1], truth[1], eager[1], strict=True):
        assert a.dtype == dtype
        assert_within_budget(a, t, b, BACKWARD, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("chunk", [3, 8, 16])  # several; one, made again; one, kept
def test_topk(backend: str, chunk: int, dtype: torch.dtype) -> None:
    n, d, v = 8, 16, 67
    x = inputs(n, d, v, 0, dtype)
    ids = torch.stack([torch.randperm(v)[:4] for _ in range(n)])
    ids[1, 2], ids[5] = -1, -1

    def ours(hidden: Tensor, head: Tensor, bias: Tensor) -> Any:
        with use_backend(backend):
            return linear_topk_logprob(
                hidden, head, ids, bias=bias, memory_mib=rows(chunk, v, dtype)
            )

    def oracle(hidden: Tensor, head: Tensor, bias: Tensor) -> Any:
        z = linear(hidden, head, bias)
        return topk_logprob_reference(z if z.dtype == FP64 else z.float(), ids)

    # Autograd runs outside of the context: force the backend for backward as well.
    with use_backend(backend):
        compare(ours, oracle, x, dtype)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("average", [False, True])
def test_sequences_against_eager(backend: str, average: bool, dtype: torch.dtype) -> None:
    b, t, d, v = 3, 5, 16, 37
    x = inputs(b * t, d, v, 1, dtype)
    x["hidden"] = x["hidden"].view(b, t, d)
    g = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, v, (b, t), generator=g)
    mask = torch.rand(b, t, generator=g) < 0.7
    mask[1] = False  # a sequence without any position
    tokens[2, 0] = -100
    counted = mask & (tokens >= 0)
    kw: dict[str, float] = {"temperature": 1.7, "softcap": 6.0}

    def ours(hidden: Tensor, head: Tensor, bias: Tensor) -> Any:
        budget = rows(4, v, dtype)
        return [
            linear_logprob(
                hidden, head, tokens, mask=mask, average=average, bias=bias, memory_mib=budget, **kw
            )
        ]

    def oracle(hidden: Tensor, head: Tensor, bias: Tensor) -> Any:
        z = linear(hidden, head, bias)
        z = 6.0 * torch.tanh((z if z.dtype == FP64 else z.float()) / 6.0) / 1.7
        logp = z.log_softmax(-1).gather(-1, tokens.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        total = torch.where(counted, logp, 0.0).sum(1)
        return [total / counted.sum(1).clamp_min(1) if average else total]

    with use_backend(backend):
        compare(ours, oracle, x, dtype)


def test_positions_that_do_not_count_are_never_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(6, 4, 9, 3)
    row_counts = []
    real = gemm.logits_chunk
    monkeypatch.setattr(
        gemm, "logits_chunk", lambda h, *a: (row_counts.append(h.shape[0]), real(h, *a))[1]
    )
    tokens = torch.tensor([[1, -100, 3], [4, 5, 6]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    counted = torch.tensor([[True, False, False], [False, True, True]])
    hidden = torch.where(counted.flatten()[:, None], x["hidden"], math.nan).view(2, 3, 4)
    hidden.requires_grad_()
    out = linear_logprob(hidden, x["head"], tokens, mask=mask)
    out.sum().backward()
    assert row_counts == [3]
    assert torch.equal((hidden.grad != 0).any(-1), counted)
    # Beyond half of the budget logits are made again in backward.
    again = linear_logprob(hidden, x["head"], tokens, mask=mask, memory_mib=rows(5, 9, FP32))
    again.sum().backward()
    assert row_counts == [3, 3, 3] and torch.equal(again, out)
    # On an accelerator the rows may be named, so that the host need not wait.
    named = linear_logprob(hidden, x["head"], tokens, mask=mask, positions=torch.tensor([5, 0, 4]))
    assert_within_budget(named, out.double(), out, FORWARD)  # a product of rows in another order


def test_per_token_and_statistics(backend: str) -> None:
    x = inputs(6, 8, 19, 4)
    tokens = torch.tensor([3, -100, 18, 0, 7, 7])
    with use_backend(backend):
        out, stats = linear_logprob(
            x["hidden"], x["head"], tokens, return_stats=True, memory_mib=rows(2, 19, FP32)
        )
    log_p = (x["hidden"].double() @ x["head"].double().t()).log_softmax(1)
    eager = (x["hidden"] @ x["head"].t()).log_softmax(1)
    at = tokens.clamp_min(0)[:, None]
    counted = tokens >= 0
    truth, base = (torch.where(counted, p.gather(1, at)[:, 0], 0.0) for p in (log_p, eager))
    assert_within_budget(out, truth, base, FORWARD)
    for field, value in (
        ("entropy", lambda p: -(p.exp() * p).sum(1)),
        ("max_prob", lambda p: p.exp().amax(1)),
    ):
        truth, base = (torch.where(counted, value(p), 0.0) for p in (log_p, eager))
        assert_within_budget(getattr(stats, field), truth, base, FORWARD, field)
    assert torch.equal(stats.argmax, torch.where(counted, log_p.argmax(1), -1))
    assert not stats.entropy.requires_grad


def test_chunks_and_fp32_head_gradient_change_nothing_but_rounding() -> None:
    n, v = 50, 23
    x = inputs(n, 8, v, 5, BF16)
    tokens = torch.arange(n) % v
    grads = {}
    for name, kw in {
        "one": {},
        "many": {"memory_mib": rows(1, v, BF16), "fp32_head_gradient": False},
        "wide": {"memory_mib": rows(1, v, BF16)},
    }.items():
        leaf = leaves(x, BF16)
        out = linear_logprob(leaf["hidden"], leaf["head"], tokens, **kw)
        out.sum().backward()
        grads[name] = out, leaf["hidden"].grad, leaf["head"].grad
    leaf = leaves(x, FP64)
    exact = linear_logprob(leaf["hidden"], leaf["head"], tokens)
    exact.sum().backward()
    # Products of another shape may round another way.
    for i, truth in enumerate((exact, leaf["hidden"].grad)):
        assert_within_budget(grads["many"][i], truth, grads["one"][i], BACKWARD)
    error = {k: float((g[2].double() - leaf["head"].grad).abs().max()) for k, g in grads.items()}
    assert error["wide"] < 0.5 * error["many"], error


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_frozen_parts_skip_their_product(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(4, 6, 11, 6)
    calls = []
    monkeypatch.setattr(gemm, "hidden_gradient", lambda *a: calls.append("hidden"))
    monkeypatch.setattr(head_gradient.HeadGradient, "add", lambda *a: calls.append("head"))
    leaf = {k: t.requires_grad_(k != frozen) for k, t in x.items()}
    linear_logprob(leaf["hidden"], leaf["head"], torch.tensor([1, 2, 3, 4])).sum().backward()
    assert calls == ["head" if frozen == "hidden" else "hidden"]
    assert leaf[frozen].grad is None


@pytest.mark.slow
def test_gradcheck_opcheck_and_second_derivative() -> None:
    x = {k: t.requires_grad_() for k, t in inputs(5, 4, 7, 7, FP64).items()}
    ids = torch.tensor([[0, 1], [2, -1], [6, 3], [-1, -1], [5, 4]])
    budget = rows(2, 7, FP64)

    def function(hidden: Tensor, head: Tensor, bias: Tensor) -> Any:
        return linear_topk_logprob(
            hidden, head, ids, bias=bias, memory_mib=budget, temperature=1.5, softcap=4.0
        )

    assert torch.autograd.gradcheck(function, tuple(x.values()))
    y = {k: t.detach().float().requires_grad_() for k, t in x.items()}
    args = (*y.values(), ids, 3.0, True, budget, False, 0.5, False)
    for keep in (False, True):
        torch.library.opcheck(
            torch.ops.w2s_fast.linear_topk_logp, (*args[:6], 1.0, *args[7:-1], keep)
        )
    logp, tail, stats, index, logits = torch.ops.w2s_fast.linear_topk_logp(*args)
    fixed = [t.detach() for t in y.values()]
    for needs_grad in ([True, True, True], [False, True, False]):
        torch.library.opcheck(
            torch.ops.w2s_fast.linear_topk_logp_backward,
            (
                logp.detach(),
                tail.detach(),
                *fixed,
                ids,
                stats,
                index,
                logits,
                3.0,
                budget,
                False,
                0.5,
                needs_grad,
            ),
        )
    with pytest.raises(RuntimeError, match="not differentiable twice"):
        (g,) = torch.autograd.grad(function(*x.values())[0].sum(), x["head"], create_graph=True)
        g.sum().backward()


def test_a_tail_that_was_not_asked_for_has_no_gradient() -> None:
    x = leaves(inputs(3, 4, 5, 13), FP32)
    args = (x["hidden"], x["head"], None, torch.tensor([[1], [2], [3]]), 0.0, False, 1.0, False)
    _, tail, *_ = torch.ops.w2s_fast.linear_topk_logp(*args, 1.0, False)
    assert bool((tail == 0).all())
    assert torch.autograd.grad(tail.sum(), x["head"], allow_unused=True) == (None,)


def test_second_backward_is_the_first_one_again() -> None:
    x = leaves(inputs(4, 6, 11, 8), FP32)
    out = linear_logprob(x["hidden"], x["head"], torch.tensor([1, 2, 3, 4])).sum()
    one = torch.autograd.grad(out, (x["hidden"], x["head"]), retain_graph=True)
    two = torch.autograd.grad(out, (x["hidden"], x["head"]))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_compile_fullgraph() -> None:
    x = leaves(inputs(6, 8, 13, 9), FP32)
    tokens, mask = torch.tensor([[1, 2, -100], [4, 5, 6]]), torch.tensor([[1, 1, 1], [0, 1, 1]])

    def step(hidden: Tensor, head: Tensor) -> Tensor:
        return linear_logprob(hidden.view(2, 3, 8), head, tokens, mask=mask, average=True).sum()

    eager = step(x["hidden"], x["head"])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x["hidden"], x["head"])
    grads = [torch.autograd.grad(y, (x["hidden"], x["head"])) for y in (eager, compiled)]
    torch.compiler.reset()
    for a, b in zip((eager, *grads[0]), (compiled, *grads[1]), strict=True):
        assert_within_budget(b, a.double(), a, BACKWARD)


def test_autocast_computes_as_a_linear_layer_would() -> None:
    x = leaves(inputs(4, 8, 13, 10), FP32)
    with torch.autocast("cpu", dtype=BF16):
        out = linear_logprob(x["hidden"], x["head"], torch.tensor([1, 2, 3, 4]))
    low = {k: t.detach().to(BF16) for k, t in x.items()}
    assert torch.equal(out, linear_logprob(low["hidden"], low["head"], torch.tensor([1, 2, 3, 4])))
    out.sum().backward()
    assert x["head"].grad.dtype == FP32


def test_no_rows() -> None:
    x = leaves(inputs(0, 4, 5, 11), FP32)
    out = linear_logprob(x["hidden"], x["head"], torch.zeros(0, dtype=torch.int64))
    out.sum().backward()
    assert out.shape == (0,) and bool((x["head"].grad == 0).all())


def test_bad_input_is_named() -> None:
    x = inputs(6, 4, 9, 12)
    h, w, t = x["hidden"], x["head"], torch.zeros(6, dtype=torch.int64)
    three = h.view(2, 3, 4)
    for call, words in (
        (lambda: linear_logprob(h, w, t[:5]), r"tokens have shape \(5,\)"),
        (lambda: linear_logprob(h, w, t.float()), "dtype torch.float32; expected integers"),
        (lambda: linear_logprob(h, w, t + 9), "outside the classes"),
        (lambda: linear_logprob(h, w, t - 5), "token -5 is not a class"),
        (lambda: linear_logprob(h, w, t, average=True), "average=True needs sequences"),
        (lambda: linear_logprob(three, w, t.view(2, 3), mask=t), r"mask has shape \(6,\)"),
        (lambda: linear_logprob(h, w, t, positions=t > 0), "positions have shape"),
        (lambda: linear_logprob(h, w.t(), t), "head has shape"),
        (lambda: linear_logprob(h, w.double(), t), "one dtype"),
        (lambda: linear_logprob(h, w, t, memory_mib=1e-6), "memory_mib"),
        (lambda: linear_logprob(h, w, t, temperature=-1.0), "temperature is -1.0"),
        (lambda: linear_topk_logprob(three, w, t[:, None]), r"expected \(N, D\)"),
    ):
        with pytest.raises(W2SError, match=words):
            call()
