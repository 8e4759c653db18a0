"""Differentiable statistics of ``cross_entropy``: values and gradients against fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets, W2SError
from w2s_fast.ops import use_backend
from w2s_fast.ops.vocab_parallel.logits import sharded_logits_cross_entropy
from w2s_fast.ops.vocab_parallel.shard import Shard
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
N = 6
FIELDS = ("lse", "max_prob", "entropy", "margin")
GRADIENTS = {"return_stats": "differentiable"}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(kind: str, v: int) -> Any:
    soft = normal(N, v, seed=1).softmax(1)
    if kind == "hard":
        ids = torch.arange(N) % v
        ids[2] = -100
        return ids
    if kind == "dense":
        return soft
    probs, ids = soft.topk(min(3, v - 1), 1)
    return SparseTargets(ids, probs, 1 - probs.sum(1))


def statistics(z: Tensor) -> list[Tensor]:
    """By their definitions, in the order of ``FIELDS``."""
    log_p = z.log_softmax(1)
    two = z.topk(2, 1).values
    entropy = -(log_p.exp() * log_p).sum(1)
    return [z.logsumexp(1), log_p.exp().amax(1), entropy, two[:, 0] - two[:, 1]]


def total(loss: Tensor, values: list[Tensor]) -> Tensor:
    """A number that depends on the loss and, by other coefficients, on every statistic but one."""
    out = (loss * torch.linspace(0.5, 2, loss.numel()).view(loss.shape).to(loss.dtype)).sum()
    for i, x in enumerate(values):
        coefficients = torch.linspace(-1, 1 + i, N).to(x.dtype)
        coefficients[4] = 0.0
        out = out + (x * coefficients).sum()
    return out


def run(dtype: torch.dtype, z: Tensor, weak: Any, eager: bool, **kw: Any) -> list[Tensor]:
    """Statistics, loss, and the gradients of logits and weights; ``eager``: without the option."""
    z = z.to(dtype, copy=True).requires_grad_()
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.5, 0.5]).to(torch.promote_types(dtype, FP32))
    weight.requires_grad_()
    if eager:
        loss = w2s_fast.cross_entropy(z, weak, weight=weight, **kw)
        wide, cap = z.to(torch.promote_types(dtype, FP32)), kw.get("softcap")
        values = statistics(cap * torch.tanh(wide / cap) if cap else wide)
    else:
        loss, stats = w2s_fast.cross_entropy(z, weak, weight=weight, **GRADIENTS, **kw)
        values = [getattr(stats, name) for name in FIELDS]
    grads = torch.autograd.grad(total(loss, values), (z, weight))
    return [*values, loss, *grads]


def compare(backend: str, dtype: torch.dtype, v: int, kind: str, **kw: Any) -> None:
    z, weak = (3 * normal(N, v, seed=2)).to(dtype), labels(kind, v)
    if kind == "dense":
        weak = weak.to(dtype)
    with use_backend(backend):
        ours = run(dtype, z, weak, False, **kw)
    exact, near = (run(d, z, weak, True, **kw) for d in (FP64, dtype))
    names = (*FIELDS, "loss", "logits", "weight")
    for name, a, t, b in zip(names, ours, exact, near, strict=True):
        c = BACKWARD if name in ("logits", "weight") else FORWARD
        assert_within_budget(a, t, b, c, name)


@pytest.mark.parametrize("kind", ["hard", "dense", "rest"])
@pytest.mark.parametrize("v", [2, 131])
def test_values_and_gradients(backend: str, v: int, kind: str) -> None:
    rule = "prior" if v == 2 else "argmax"
    compare(backend, FP32, v, kind, aux=0.4, threshold=rule, reduction="none")


@pytest.mark.parametrize("dtype", [BF16, FP16, FP64], ids=str)
@pytest.mark.parametrize("kind", ["hard", "dense", "rest"])
def test_dtypes(dtype: torch.dtype, kind: str) -> None:
    """16-bit gradients of loss and statistics are summed before they are rounded."""
    for reduction in ("mean", "sum"):
        compare("cpp", dtype, 131, kind, reduction=reduction)


@pytest.mark.parametrize("kw", [{"softcap": 4.0}, {"smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
def test_terms_of_the_loss(backend: str, kw: dict[str, float]) -> None:
    compare(backend, FP32, 17, "dense", **kw)


def test_detached_fields_and_values_are_those_without_gradients() -> None:
    z, weak = normal(N, 9, seed=3), labels("rest", 9)
    options: dict[str, Any] = {"aux": 0.5, "threshold": "median"}
    loss, stats = w2s_fast.cross_entropy(z.requires_grad_(), weak, **GRADIENTS, **options)
    expected, plain = w2s_fast.cross_entropy(z, weak, return_stats=True, **options)
    torch.testing.assert_close(loss, expected)
    assert plain.margin is None and not plain.entropy.requires_grad
    for name in stats.__slots__:
        value = getattr(stats, name)
        assert value.requires_grad == (name in FIELDS), name
        if name != "margin":
            torch.testing.assert_close(value, getattr(plain, name), msg=name)


def test_only_one_of_the_two_has_an_upstream() -> None:
    z, weak = normal(N, 9, seed=3).requires_grad_(), labels("hard", 9)
    loss, stats = w2s_fast.cross_entropy(z, weak, **GRADIENTS)
    expected = torch.autograd.grad(w2s_fast.cross_entropy(z, weak), z)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, z, retain_graph=True)[0], expected)
    entropy = torch.autograd.grad(stats.entropy.sum(), z, retain_graph=True)[0]
    torch.testing.assert_close(entropy, torch.autograd.grad(statistics(z)[2].sum(), z)[0])
    with pytest.raises(RuntimeError, match="cross_entropy is not differentiable twice"):
        (grad,) = torch.autograd.grad(stats.lse.sum(), z, create_graph=True)
        grad.sum().backward()


def test_compiled() -> None:
    def loss(z: Tensor) -> Tensor:
        value, stats = w2s_fast.cross_entropy(z * 1.0, labels_, aux=0.3, **GRADIENTS)
        return value - 0.1 * stats.entropy.mean() + stats.margin.sum()

    labels_, z = labels("dense", 9), normal(N, 9, seed=3).requires_grad_()
    expected = torch.autograd.grad(loss(z), z)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(z), z)[0], expected)
    torch.compiler.reset()


def test_words_that_are_no_statistics() -> None:
    z, hard = normal(N, 9, seed=3), labels("hard", 9)
    with pytest.raises(W2SError, match="return_stats is 'all'; expected True, False or 'differ"):
        w2s_fast.cross_entropy(z, hard, return_stats="all")
    with pytest.raises(W2SError, match="return_stats is the str 'differentiable'"):
        w2s_fast.linear_cross_entropy(z, normal(7, 9, seed=4), hard % 7, **GRADIENTS)
    with pytest.raises(W2SError, match="return_stats is 'differentiable' for logits that are shar"):
        sharded_logits_cross_entropy(z, hard, Shard(0, 9, 18, None), **GRADIENTS)
