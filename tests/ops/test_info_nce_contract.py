"""What ``info_nce`` promises beside its numbers: autograd, compile, memory, errors; mixing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.info_nce_calls import results, sample
from torch import Tensor

import w2s_fast
from w2s_fast import W2SError
from w2s_fast.ops import OPS
from w2s_fast.ops.info_nce.reference import info_nce_reference, info_nce_sample
from w2s_fast.testing import FORWARD, assert_within_budget

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def test_gradcheck() -> None:
    call = sample(4, 7, FP64, margin=0.3)
    q, d = (call.pop(k).requires_grad_() for k in ("queries", "documents"))
    weight = call.pop("weight").double().clamp_min(0.5).requires_grad_()
    for reduction in ("mean", "sum", "none"):

        def loss(q: Tensor, d: Tensor, w: Tensor, r: str = reduction) -> Any:
            return w2s_fast.info_nce(q, d, weight=w, reduction=r, **call)

        assert torch.autograd.gradcheck(loss, (q, d, weight))


def test_a_frozen_side_gets_no_gradient_and_costs_no_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from w2s_fast.ops.info_nce import products

    calls: list[str] = []
    for name in ("_add_queries", "_add_documents"):
        real = getattr(products.PairGradients, name)
        monkeypatch.setattr(
            products.PairGradients, name,
            lambda *a, real=real, name=name: (calls.append(name), real(*a))[1],
        )  # fmt: skip
    call = sample(5, 9, FP32)
    for reduction in ("mean", "none"):
        for other in ("queries", "documents"):
            leaf = call[other].clone().requires_grad_()
            calls.clear()
            w2s_fast.info_nce(**call | {other: leaf}, reduction=reduction).sum().backward()
            assert calls == [f"_add_{other}"] and leaf.grad is not None
    calls.clear()
    w2s_fast.info_nce(**call)
    with torch.no_grad():
        w2s_fast.info_nce(**call | {"queries": call["queries"].clone().requires_grad_()})
    assert not calls


def test_backward_twice_and_upstream() -> None:
    call = sample(5, 9, FP32)
    q = call.pop("queries").requires_grad_()
    loss = w2s_fast.info_nce(q, **call)
    (one,) = torch.autograd.grad(loss, q, retain_graph=True)
    (two,) = torch.autograd.grad(loss, q, torch.tensor(2.0), retain_graph=True)
    (three,) = torch.autograd.grad(loss, q)
    assert torch.equal(2 * one, two) and torch.equal(one, three)


def test_fp16_gradients_meet_the_loss_scale_before_they_are_rounded() -> None:
    call = sample(6, 12, FP16)
    exact = results(info_nce_reference, call, FP64)
    for reduction in ("mean", "none"):
        q = call["queries"].clone().requires_grad_()
        loss = w2s_fast.info_nce(**call | {"queries": q}, reduction=reduction)
        loss = (
            loss.sum() if reduction == "mean" else loss.sum() / call["weight"][[0, 2, 4, 5]].sum()
        )
        (loss * 1e-4 * 2.0**12).backward()
        assert q.grad is not None
        scaled = q.grad.double() / 2**12 / 1e-4
        error = (scaled - exact[1][1]).abs().max() / exact[1][1].abs().max()
        assert float(error) < 1e-3


def test_opcheck() -> None:
    call = sample(5, 7, FP32)
    mask = torch.rand(5, 7) < 0.8
    head = (call["queries"].requires_grad_(), call["documents"].requires_grad_())
    rules = (call["query_groups"], call["document_groups"], mask, False, 0.5, 0.05, 0.5, 1.0)
    torch.library.opcheck(
        torch.ops.w2s_fast.info_nce, (*head, call["positives"].clamp_min(0), *rules)
    )
    torch.library.opcheck(
        torch.ops.w2s_fast.info_nce_backward,
        (torch.ones(()).expand(5), *(x.detach() for x in head),
         call["positives"].clamp_min(0), *rules, [True, False]),
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_fullgraph(reduction: str) -> None:
    call = sample(5, 9, FP32, margin=0.1, focal_gamma=0.5, reduction=reduction)
    q, d = call.pop("queries"), call.pop("documents")

    def step(q: Tensor, d: Tensor) -> Tensor:
        return w2s_fast.info_nce(q * 1.0, d, **call).sum()

    got = []
    torch.compiler.reset()
    for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (q, d)]
        loss = f(*leaves)
        loss.backward()
        got.append((loss.detach(), *(x.grad for x in leaves)))
    torch.compiler.reset()
    for eager, compiled in zip(*got, strict=True):
        assert_within_budget(compiled, eager.double(), eager, FORWARD)


def test_autocast() -> None:
    call = sample(6, 12, FP32)
    q = call.pop("queries").requires_grad_()
    with torch.autocast("cpu", BF16):
        loss = w2s_fast.info_nce(q, **call)
    rounded = call | {"documents": call["documents"].bfloat16()}
    assert torch.equal(loss, w2s_fast.info_nce(q.bfloat16(), **rounded))
    loss.backward()
    assert q.grad is not None and q.grad.dtype == FP32


@pytest.mark.parametrize("given", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("auto", [BF16, FP16], ids=str)
def test_autocast_rounds_vectors_of_length_1(auto: torch.dtype, given: torch.dtype) -> None:
    """As eager does: lengths are those of the embeddings before they are cast."""
    call = sample(6, 12, given, positives=None)
    call["queries"], call["documents"] = 3e4 * call["queries"], 3e4 * call["documents"]
    call["documents"][9] = 0
    with torch.autocast("cpu", auto):
        loss = w2s_fast.info_nce(**call, normalize=True)
    low = {k: F.normalize(call[k].float(), dim=-1).to(auto) for k in ("queries", "documents")}
    assert bool(loss.isfinite()) and torch.equal(loss, w2s_fast.info_nce(**call | low))


def test_nothing_of_the_size_of_the_similarities_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, m, d = 256, 512, 8
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = f(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple | list) else (out,)
            sizes.extend(t.untyped_storage().nbytes() for t in made if isinstance(t, Tensor))
            return out

    call = info_nce_sample(n, m, FP32, "cpu", 0, margin=0.1)
    q, k = torch.randn(n, d), torch.randn(m, d)
    for reduction in ("mean", "none"):
        leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
        with Watch():
            loss = w2s_fast.info_nce(
                leaves[0], leaves[1], reduction=reduction, memory_mib=1 / 16,
                **{k: v for k, v in call.items() if k not in ("queries", "documents")},
            )  # fmt: skip
            loss.sum().backward()
    assert max(sizes) <= n * m * 4 / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": torch.ones(3, 24)}, "3 documents for 5 queries"),
        ({"documents": torch.ones(9, 4)}, "documents have shape (9, 4)"),
        ({"documents": torch.ones(5, 2, 24)}, "hard negatives (N, K, D) are flattened"),
        ({"documents": torch.ones(9, 24, dtype=FP64)}, "documents are torch.float64"),
        ({"queries": torch.ones(24)}, "queries have shape (24,)"),
        ({"queries": torch.ones(5, 24, dtype=torch.int64)}, "queries have dtype torch.int64"),
        ({"positives": torch.tensor([0, 1, 2, 3, 9])}, "positives has 9; expected rows"),
        ({"positives": torch.tensor([0, 1, 2, 3, -1])}, "positives has -1; expected rows"),
        ({"positives": torch.ones(4, dtype=torch.int64)}, "positives have shape (4,)"),
        ({"positives": torch.ones(5)}, "positives have dtype torch.float32"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0"),
        ({"margin": math.inf}, "margin is inf"),
        ({"negatives": "same"}, "negatives is 'same'"),
        ({"negatives": "same_group"}, "without groups"),
        ({"query_groups": torch.ones(5, dtype=torch.int64)}, "document_groups is None"),
        ({"document_groups": torch.ones(9, dtype=torch.int64)}, "query_groups is None"),
        ({"negative_mask": torch.ones(5, 9)}, "negative_mask is torch.float32"),
        ({"negative_mask": torch.ones(9, 5) > 0}, "expected bool (5, 9)"),
        ({"weight": torch.ones(4)}, "weight has shape (4,)"),
        ({"weight": -torch.ones(5)}, "weight[0] is -1.0"),
        ({"weight": torch.ones(5) > 0}, "weight has dtype torch.bool"),
        ({"reduction": "batchmean"}, "reduction is 'batchmean'"),
        ({"symmetric": True}, "symmetric=True with 9 documents"),
        ({"memory_mib": 0.0}, "memory_mib is 0.0"),
    ],
)  # fmt: skip
def test_errors(change: dict[str, Any], message: str) -> None:
    call = {"queries": torch.ones(5, 24), "documents": torch.ones(9, 24), **change}
    with pytest.raises(W2SError) as error:
        w2s_fast.info_nce(**call)
    assert message in str(error.value)


def test_mixed_negatives() -> None:
    q, h = torch.randn(300, 4), torch.randn(300, 3, 4)
    g = torch.Generator().manual_seed(0)
    mixed = w2s_fast.mix_hard_negatives(q, h, count=5, generator=g)
    assert mixed.shape == (300, 5, 4)
    # On the segment between two different negatives: a 3 x 3 system gives the shares.
    shares = torch.linalg.lstsq(h.transpose(1, 2), mixed.transpose(1, 2))[0].transpose(1, 2)
    shares = shares.sort(2)[0]
    assert float(shares[..., 0].abs().max()) < 1e-3
    torch.testing.assert_close(shares.sum(2), torch.ones(300, 5), rtol=0, atol=1e-3)
    a = torch.cat([shares[..., 1].flatten(), shares[..., 2].flatten()])
    assert float(a.var()) == pytest.approx(1 / 20, abs=0.004)  # of Beta(2, 2); uniform: 1 / 12
    again = w2s_fast.mix_hard_negatives(q, h, count=5, generator=g.manual_seed(0))
    assert torch.equal(mixed, again)
    (listed,) = w2s_fast.mix_hard_negatives(q, h, rule="list", temperature=0.5)[:1]
    share = (h[0] @ q[0] / 0.5).softmax(0)
    torch.testing.assert_close(listed[0], share @ h[0])


@pytest.mark.parametrize("auto", [None, BF16, FP16], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_similarities_of_mixing_have_32_bits(dtype: torch.dtype, auto: Any) -> None:
    """Also under autocast; products of these fp16 embeddings are above 65504."""
    g = torch.Generator().manual_seed(0)
    q = 4 * torch.randn(32, 1024, generator=g)
    h = (q[:, None] + 2 * torch.randn(32, 8, 1024, generator=g)).to(dtype)
    q = q.to(dtype)
    truth = w2s_fast.mix_hard_negatives(q.double(), h.double(), rule="list")
    eager = w2s_fast.mix_hard_negatives(q.float(), h.float(), rule="list")
    with torch.autocast("cpu", auto, enabled=auto is not None):
        mixed = w2s_fast.mix_hard_negatives(q, h, rule="list")
    assert mixed.dtype == dtype
    assert_within_budget(mixed, truth, eager.to(dtype), FORWARD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "triples"}, "rule is 'triples'"),
        ({"negatives": torch.ones(5, 1, 4)}, "K of 2 or more"),
        ({"negatives": torch.ones(5, 4)}, "negatives are torch.float32 (5, 4)"),
        ({"negatives": torch.ones(4, 2, 4)}, "expected torch.float32 (5, K, 4)"),
        ({"negatives": torch.ones(5, 2, 4, dtype=FP64)}, "negatives are torch.float64"),
        ({"queries": torch.ones(5)}, "queries are torch.float32 (5,)"),
        ({"count": 0}, "count is 0; expected 1 or more"),
        ({"rule": "list", "count": 2}, "count is 2; expected 1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)  # fmt: skip
def test_errors_of_mixing(change: dict[str, Any], message: str) -> None:
    call = {"queries": torch.ones(5, 4), "negatives": torch.ones(5, 2, 4), **change}
    with pytest.raises(W2SError) as error:
        w2s_fast.mix_hard_negatives(**call)
    assert message in str(error.value)


def test_the_table_of_ops_drives_it() -> None:
    op = OPS["info_nce"]
    call = op.sample(9, 17, FP32, "cpu", 0)
    assert float(op.reference(**call)) == pytest.approx(float(w2s_fast.info_nce(**call)), rel=1e-5)
    assert op.cost(4, 5, FP32).flops == 6 * 4 * 5 * 768
