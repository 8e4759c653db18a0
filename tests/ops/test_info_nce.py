"""InfoNCE against its definition in fp64, on every backend: numbers, gradients, masks, contract."""

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
from w2s_fast.ops import use_backend
from w2s_fast.ops.info_nce.api import InfoNCEStats
from w2s_fast.ops.info_nce.call import RowsCall, Stat
from w2s_fast.ops.info_nce.reference import info_nce_reference
from w2s_fast.testing import (
    FORWARD,
    assert_fp64,
    assert_within_budget,
    device,
)

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
# Three queries of 37 documents in fp32; with the gradient in 16 bits two.
SMALL = 3 * 37 * 4 / 2**20
OPTIONS: dict[str, dict[str, Any]] = {
    "groups": {},
    "same group": {"negatives": "same_group"},
    "no groups": {"query_groups": None, "document_groups": None},
    "margin": {"margin": 0.1},
    "negative margin": {"margin": -0.2},
    "focal": {"focal_gamma": 0.5},
    "all": {"margin": 0.05, "focal_gamma": 2.0, "temperature": 0.02, "negative_mask": True},
    "sum": {"reduction": "sum"},
    "rows": {"reduction": "none"},
    "unweighted": {"weight": None, "focal_gamma": 0.5},
}


def compare(backend: str, call: dict[str, Any], dtype: torch.dtype) -> None:
    plain = {k: v for k, v in call.items() if k != "memory_mib"}
    with use_backend(backend):
        actual = results(w2s_fast.info_nce, call, dtype)
    truth = results(info_nce_reference, plain, FP64)
    if dtype == FP64:
        for (name, y, _), (_, t, _) in zip(actual, truth, strict=True):
            assert_fp64(y, t, name)
        return
    eager = results(info_nce_reference, plain, dtype)
    for (name, y, c), (_, t, _), (_, b, _) in zip(actual, truth, eager, strict=True):
        assert_within_budget(y, t, b.to(y.dtype), c, name)


@pytest.mark.parametrize("option", OPTIONS)
def test_is_its_definition(backend: str, option: str) -> None:
    for dtype in (FP32, BF16, FP64):
        compare(backend, sample(9, 37, dtype, **OPTIONS[option]), dtype)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=str)
def test_chunks_of_every_dtype(backend: str, dtype: torch.dtype) -> None:
    options = OPTIONS["all"] | {"temperature": 0.05}
    for reduction in ("mean", "none"):
        call = sample(9, 37, dtype, **options, reduction=reduction)
        compare(backend, call | {"memory_mib": 2 * SMALL}, dtype)


# One document; one that is not its positive; vectors without a rest; more than a block of lanes.
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 16), (5, 64), (2, 1030), (70, 129)])
def test_shapes(backend: str, shape: tuple[int, int]) -> None:
    if backend in ("triton", "cuda") and shape[0] == 70:
        pytest.skip("emulated: minutes")
    compare(backend, sample(*shape, FP32, margin=0.1), FP32)


def test_in_batch_negatives_are_cross_entropy(backend: str) -> None:
    call = sample(8, 8, FP32)
    q, d = call["queries"], call["documents"]
    hard = F.normalize(torch.randn(16, 24, generator=torch.Generator().manual_seed(2)), dim=1)
    documents = torch.cat([d, hard.to(d.device)])
    truth = F.cross_entropy(
        q.double() @ documents.double().t() / 0.01, torch.arange(8).to(q.device)
    )
    with use_backend(backend):
        loss = w2s_fast.info_nce(q, documents, temperature=0.01)
        scaled = w2s_fast.info_nce(q * 100, documents, temperature=1.0)
        own = w2s_fast.info_nce(3 * q, d / 5, normalize=True)
    assert_within_budget(loss, truth, truth.float(), FORWARD)
    assert_within_budget(scaled, truth, truth.float(), FORWARD)
    plain = info_nce_reference(q.double(), d.double(), normalize=True)
    assert_within_budget(own, plain, plain.float(), FORWARD)


def test_symmetric(backend: str) -> None:
    call = sample(9, 9, FP32, symmetric=True, margin=0.2, negative_mask=True, positives=None)
    compare(backend, call, FP32)
    compare(backend, call | {"reduction": "none"}, FP32)


def test_16_bits_lose_nothing_in_the_exponent(backend: str) -> None:
    """Similarities of 16 bits, divided by a small temperature, are wrong by whole units."""
    call = sample(9, 37, BF16, temperature=0.01, reduction="none")
    exact = info_nce_reference(**{k: v.double() if k in ("queries", "documents", "weight") else v
                                  for k, v in call.items()})  # fmt: skip
    with use_backend(backend):
        loss = w2s_fast.info_nce(**call)
    eager = info_nce_reference(**call)
    assert float((loss.double() - exact).abs().max()) < 2e-5
    assert float((eager.double() - exact).abs().max()) > 0.02


@pytest.mark.parametrize("scale", [1.0, 8e4])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_16_bits_are_normalized_in_fp32(backend: str, dtype: torch.dtype, scale: float) -> None:
    """A length rounded to bf16 moves all similarities of its row; in fp16 it may be infinite."""
    call = sample(9, 37, dtype, temperature=0.02, normalize=True, reduction="none")
    call["queries"], call["documents"] = scale * call["queries"], scale * call["documents"]
    call["documents"][5] = 0  # has no direction, and similarity 0
    with use_backend(backend):
        actual = results(w2s_fast.info_nce, call, dtype)
    truth, eager = (results(info_nce_reference, call, wide) for wide in (FP64, FP32))
    for (name, y, c), (_, t, _), (_, b, _) in zip(actual, truth, eager, strict=True):
        kept = torch.ones(len(y), dtype=torch.bool, device=y.device)
        if name == "documents":
            # The slope of a direction that there is not: 1e12, as eager has it.
            kept[5] = False
        # Exponents of 50 are off by 6e-6 in fp32, in eager by chance less.
        assert_within_budget(y[kept], t[kept], b[kept].to(y.dtype), 4 * c, name)


def test_stats(backend: str) -> None:
    call = sample(9, 37, FP32, margin=0.3, focal_gamma=0.5)
    with use_backend(backend):
        loss, stats = w2s_fast.info_nce(**call, reduction="sum", return_stats=True)
    assert isinstance(stats, InfoNCEStats) and not stats.lse.requires_grad
    q, d = call["queries"].double(), call["documents"].double()
    counted = (call["weight"] != 0) & (call["positives"] >= 0)
    s, at = q @ d.t(), call["positives"].clamp_min(0)
    pos = s.gather(1, at[:, None])[:, 0]
    same = call["query_groups"][:, None] == call["document_groups"]
    kept = ~(same & (call["document_groups"] >= 0)) & (s <= pos[:, None] + 0.3)
    kept[torch.arange(9), at] = False
    negatives = s.masked_fill(~kept, -math.inf)
    p = torch.sigmoid(pos / 0.05 - (negatives / 0.05).logsumexp(1))
    expected = {
        "loss": -((1 - p) ** 0.5) * p.log(),
        "lse": torch.logaddexp((negatives / 0.05).logsumexp(1), pos / 0.05),
        "positive": pos,
        "hardest": negatives.amax(1),
        "negatives": kept.sum(1).double(),
        "focal": (1 - p) ** 0.5,
    }
    for name, values in expected.items():
        values = torch.where(counted, values, 0.0)
        torch.testing.assert_close(
            getattr(stats, name).double(), values, rtol=3e-6, atol=3e-6, msg=name
        )
    assert_within_budget(loss, (stats.loss * call["weight"]).double().sum(), loss.detach(), FORWARD)


def test_queries_that_do_not_count(backend: str) -> None:
    """Loss, statistics and gradients are exactly 0, whatever their own similarities are."""
    call = sample(6, 12, FP32)
    call["queries"][[1, 3]] = 1e30
    q = call.pop("queries").requires_grad_()
    with use_backend(backend):
        loss, stats = w2s_fast.info_nce(q, **call, reduction="none", return_stats=True)
        loss.sum().backward()
        nothing = w2s_fast.info_nce(q, call["documents"], positives=torch.full_like(
            call["positives"], -100))  # fmt: skip
        unweighted = w2s_fast.info_nce(q, **call | {"weight": torch.zeros(6, device=q.device)})
    assert q.grad is not None
    for values in (loss, stats.lse, stats.hardest, stats.negatives, stats.focal, q.grad):
        assert not bool(values[[1, 3]].any()) and bool(values[[0, 2, 4, 5]].any())
    assert float(nothing.detach()) == 0 and float(unweighted.detach()) == 0


def test_no_negatives(backend: str) -> None:
    """A query without negatives has loss 0 and gradient 0; so has a call with one document."""
    call = sample(5, 20, FP32, weight=None, positives=torch.arange(5).to(device()))
    mask = torch.ones(5, 20, dtype=torch.bool, device=device())
    mask[2] = False
    q = call["queries"].requires_grad_()
    with use_backend(backend):
        loss, stats = w2s_fast.info_nce(
            q, call["documents"], negative_mask=mask, reduction="none", return_stats=True
        )
        loss.sum().backward()
        one = w2s_fast.info_nce(q[:1], call["documents"][:1])
    assert float(loss[2].detach()) == 0 and float(stats.hardest[2]) == -math.inf
    assert int(stats.negatives[2]) == 0 and int(stats.negatives[0]) == 19
    assert q.grad is not None and not bool(q.grad[2].any()) and bool(q.grad[1].any())
    assert float(one.detach()) == 0


def test_small_losses_are_not_rounded_to_zero(backend: str) -> None:
    """1 - p of a positive far above the negatives is below the rounding of p."""
    q = torch.eye(2, 8, device=device()).requires_grad_()
    with use_backend(backend):
        loss = w2s_fast.info_nce(q, torch.eye(2, 8, device=device()), temperature=0.04)
        loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(-25)), rel=1e-5)
    assert q.grad is not None
    assert float(q.grad[0, 0]) == pytest.approx(-math.exp(-25) / 0.04 / 2, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["positive", "negative", "excluded"])
def test_not_finite(backend: str, where: str, value: float) -> None:
    """A NaN shows in its row and no other; -inf is a probability of 0; masks hide both."""
    s = torch.linspace(-1, 1, 3 * 21, device=device()).view(3, 21).contiguous()
    positives = torch.tensor([4, 9, 20], device=device())
    groups = torch.arange(21, device=device())
    column = {"positive": 9, "negative": 13, "excluded": 2}[where]
    s[1, column] = value
    own = torch.tensor([30, 2, 40], device=device())  # of the second query: document 2
    truth, grad = _rows_in_fp64(s.double(), positives, own, groups)
    stats, made = _rows(backend, s, positives, own, groups)
    # An infinite loss is what remains of a positive without probability.
    broken = math.isnan(value) or value == math.inf
    if where != "excluded" and broken:
        assert math.isnan(stats[Stat.LOSS, 1]) and bool(made[1].isnan().all())
    else:
        torch.testing.assert_close(stats[Stat.LOSS, 1].double(), truth[1], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(made[1].double(), grad[1], rtol=1e-5, atol=1e-7)
    for row in (0, 2):
        torch.testing.assert_close(made[row].double(), grad[row], rtol=1e-5, atol=1e-7)


def test_a_positive_that_is_no_document(backend: str) -> None:
    """Where the host cannot look, the row is NaN and nothing else is read or written."""
    if backend == "ref":
        pytest.skip("torch's own indexing raises")
    s = torch.linspace(-1, 1, 3 * 21, device=device()).view(3, 21).contiguous()
    s[2] = math.nan  # of an excluded query: its gradient is 0 all the same
    positives = torch.tensor([4, 21, -1], device=device())
    own, groups = torch.full((3,), -1, device=device()), torch.arange(21, device=device())
    stats, made = _rows(backend, s, positives, own, groups)
    assert bool(stats[:, 1].isnan().all()) and bool(made[1].isnan().all())
    assert not bool(stats[:, 2].any()) and not bool(made[2].any())
    truth, grad = _rows_in_fp64(s.double(), positives.clamp(0, 20), own, groups)
    torch.testing.assert_close(made[0].double(), grad[0], rtol=1e-5, atol=1e-7)


def _rows(
    backend: str, s: Tensor, positives: Tensor, own: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    from w2s_fast.ops import dispatch
    from w2s_fast.ops.info_nce.call import Negatives

    room = s.clone()
    stats = torch.empty(len(Stat), 3, device=s.device)
    call = RowsCall(room, positives, Negatives(own, groups), 5.0, 0.0, stats, None, room)
    with use_backend(backend):
        dispatch.backend("info_nce", s).rows(call)
    return stats, room


def _rows_in_fp64(
    s: Tensor, positives: Tensor, own: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    z = (5 * s).masked_fill(own[:, None] == groups, -math.inf)
    loss = z.logsumexp(1) - z.gather(1, positives[:, None])[:, 0]
    return loss, z.softmax(1) - F.one_hot(positives, 21)


def test_chunks_are_one_call(backend: str) -> None:
    """A row's loss does not depend on the chunk it is in."""
    call = sample(9, 37, FP32, reduction="none")
    with use_backend(backend):
        whole = w2s_fast.info_nce(**call)
        parts = w2s_fast.info_nce(**call, memory_mib=SMALL)
        one = w2s_fast.info_nce(**call, memory_mib=37 * 4 / 2**20)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one, whole, rtol=1e-6, atol=1e-6)
    with pytest.raises(W2SError, match="memory_mib"):
        w2s_fast.info_nce(**call, memory_mib=36 * 4 / 2**20)
