"""Reverse KL over the student's own most likely classes, and the op that finds them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.losses.distillation import ReverseKL, make_distillation
from w2s_fast.losses.distillation.reverse_kl import SUPPORTS
from w2s_fast.ops.fused_linear import topk
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64
N, D, V, K = 7, 8, 31, 4


def parts(seed: int, dtype: torch.dtype = FP32, n: int = N) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g).to(dtype) for s in ((n, D), (V, D), (V,))]


@pytest.mark.parametrize("dtype", [FP32, BF16, FP64], ids=str)
@pytest.mark.parametrize("chunk", [2, 100])
def test_ids_are_those_of_the_logits(chunk: int, dtype: torch.dtype) -> None:
    hidden, head, bias = parts(0, dtype)
    ids = w2s_fast.linear_topk_ids(
        hidden, head, K, bias=bias, memory_mib=chunk * V * dtype.itemsize / 2**20
    )
    z = linear(hidden.double(), head.double(), bias.double())
    assert ids.shape == (N, K) and ids.dtype == torch.int64
    # In 16 bits near ties may change places.
    least = z.topk(K).values[:, -1:] - 8 * torch.finfo(dtype).eps * z.abs().max()
    assert bool((z.gather(1, ids) >= least).all())
    assert dtype == BF16 or torch.equal(ids, z.topk(K).indices)
    assert all(len(set(row)) == K for row in ids.tolist())


def test_positions_sequences_and_no_rows() -> None:
    hidden, head, _ = parts(1, n=6)
    whole = w2s_fast.linear_topk_ids(hidden.view(2, 3, D), head, 2)
    some = w2s_fast.linear_topk_ids(hidden.view(2, 3, D), head, 2, positions=torch.tensor([4, 1]))
    assert torch.equal(some, whole[[4, 1]])
    assert w2s_fast.linear_topk_ids(hidden[:0], head, 2).shape == (0, 2)


def test_ids_in_every_mode() -> None:
    hidden, head, bias = (t.requires_grad_() for t in parts(2))
    ids = w2s_fast.linear_topk_ids(hidden, head, K, bias=bias)
    compiled = torch.compile(w2s_fast.linear_topk_ids, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(hidden, head, K, bias=bias), ids)
    torch.compiler.reset()
    torch.library.opcheck(
        torch.ops.w2s_fast.linear_topk_ids, (*(t.detach() for t in (hidden, head, bias)), K, 64.0)
    )

    def loss(h: Tensor) -> Tensor:
        return w2s_fast.linear_topk_logprob(h, head, topk.linear_topk_ids(h, head, K))[0].sum()

    grad = torch.func.grad(loss)(hidden)
    assert torch.equal(grad, torch.autograd.grad(loss(hidden), hidden)[0])
    with torch.autocast("cpu", dtype=BF16):
        low = w2s_fast.linear_topk_ids(hidden, head.bfloat16(), K)  # two dtypes, as in a layer
    assert torch.equal(low, w2s_fast.linear_topk_ids(hidden.bfloat16(), head.bfloat16(), K))
    with pytest.raises(RuntimeError, match="linear_topk_ids cannot run under torch.func.vmap"):
        torch.func.vmap(lambda h: w2s_fast.linear_topk_ids(h, head, K))(hidden[None])


def test_bad_input_is_named() -> None:
    hidden, head, bias = parts(3)
    for args, kw, words in (
        ((hidden, head, 0), {}, "k is 0; expected 1 to 31"),
        ((hidden, head, 32), {}, "k is 32; expected 1 to 31"),
        ((hidden, head.t(), 2), {}, "head has shape"),
        ((hidden, head, 2), {"bias": bias[:3]}, "bias has shape"),
        ((hidden, head, 2), {"memory_mib": 1e-6}, "memory_mib"),
        ((hidden[0], head, 2), {}, r"hidden has shape \(8,\)"),
    ):
        with pytest.raises(W2SError, match=words):
            w2s_fast.linear_topk_ids(*args, **kw)


def definition(p: Tensor, q: Tensor, ids: Tensor, support: str) -> Tensor:
    """Sum over rows of the divergence of full distributions restricted to ``ids``."""
    p_k, q_k = p.gather(1, ids), q.gather(1, ids)
    if support == "tail":
        p_k = torch.cat([p_k, 1 - p_k.sum(1, keepdim=True)], 1)
        q_k = torch.cat([q_k, 1 - q_k.sum(1, keepdim=True)], 1)
    if support == "renormalised":
        p_k, q_k = p_k / p_k.sum(1, keepdim=True), q_k / q_k.sum(1, keepdim=True)
    return (p_k * (p_k / q_k).log()).sum()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("support", SUPPORTS)
def test_value_and_gradient_on_policy(support: str, temperature: float) -> None:
    student, teacher = parts(4), parts(5)
    results = []
    for dtype in (None, FP64, FP32):
        h, w, b = (t.to(dtype or FP32, copy=True).requires_grad_() for t in student)
        t_h, t_w, t_b = (t.to(dtype or FP32) for t in teacher)
        ids = w2s_fast.linear_topk_ids(h, w, K, bias=b)
        if dtype is None:
            logp, tail = w2s_fast.linear_topk_logprob(
                t_h, t_w, ids, bias=t_b, temperature=temperature
            )
            loss = make_distillation(f"reverse_kl:support={support},temperature={temperature}")
            targets = SparseTargets(ids, logp.exp(), tail.exp())
            total = loss.linear(h, w, targets, bias=b).loss_sum
            dense = loss(linear(h, w, b), targets).loss_sum
            assert float(dense) == pytest.approx(float(total), rel=1e-5)
        else:
            p = (linear(h, w, b) / temperature).softmax(1)
            q = (linear(t_h, t_w, t_b) / temperature).softmax(1)
            total = definition(p, q, ids, support)
        results.append((total, *torch.autograd.grad(total, (h, w, b))))
    ours, truth, eager = results
    assert_within_budget(ours[0], truth[0], eager[0], FORWARD, "loss")
    for a, t, base in zip(ours[1:], truth[1:], eager[1:], strict=True):
        assert_within_budget(a, t, base, BACKWARD, "gradient")


def test_equal_distributions_have_no_divergence_and_truncation_no_minimum_there() -> None:
    z = torch.randn(3, V, dtype=FP64).requires_grad_()
    ids = z.detach().topk(K).indices
    p = z.detach().softmax(1).gather(1, ids)
    targets = SparseTargets(ids, p, 1 - p.sum(1))
    for support in SUPPORTS:
        total = ReverseKL(support=support)(z, targets).loss_sum
        (grad,) = torch.autograd.grad(total, z)
        assert float(total) == pytest.approx(0, abs=1e-12)
        assert bool((grad.abs() < 1e-12).all()) == (support != "truncated")


@pytest.mark.parametrize("support", SUPPORTS)
def test_padding_and_impossible_classes(support: str) -> None:
    z = torch.randn(3, 6, dtype=FP64)
    z[1, 4] = -math.inf
    z.requires_grad_()
    ids = torch.tensor([[0, 2, -1], [1, 4, -1], [-1, -1, -1]])
    probs = torch.tensor([[0.5, 0.3, 9.0], [0.5, 0.0, 9.0], [9.0, 9.0, 9.0]], dtype=FP64)
    rest = torch.tensor([0.2, 0.5, 1.0], dtype=FP64)
    out = ReverseKL(support=support)(z, SparseTargets(ids, probs, rest))
    (grad,) = torch.autograd.grad(out.loss_sum, z)
    p, expected = z.detach().softmax(1), 0.0
    for row, at, q, r in ((0, [0, 2], [0.5, 0.3], 0.2), (1, [1], [0.5], 0.5)):
        full = torch.zeros(1, 6, dtype=FP64)
        full[0, at] = torch.tensor(q, dtype=FP64)
        full[0, 5] = r
        expected += float(definition(p[row : row + 1], full, torch.tensor([at]), support))
    assert float(out.loss_sum) == pytest.approx(expected, rel=1e-9)
    assert bool(grad.isfinite().all())


def test_an_unknown_support_is_refused() -> None:
    with pytest.raises(W2SError, match="ReverseKL: support is 'top'; expected one of"):
        ReverseKL(support="top")
