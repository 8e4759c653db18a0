"""The quantile against its definition, on every backend: any N, ties, masks, infinities, NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast.ops import OPS, use_backend
from w2s_fast.ops.quantile.api import masked_quantile
from w2s_fast.testing import FORWARD, assert_within_budget, device

QS = (0.0, 0.1, 0.5, 0.77, 1.0)


def definition(x: Tensor, q: float) -> Tensor:
    """Order statistics by sorting, interpolated in fp64."""
    x = x.double().sort().values
    position = q * (x.numel() - 1)
    low, high = x[math.floor(position)], x[math.ceil(position)]
    return low if low == high else low + (position - math.floor(position)) * (high - low)


def run(backend: str, x: Tensor, q: float | Tensor, keep: Tensor | None = None) -> Tensor:
    with use_backend(backend):
        return masked_quantile(x, q, keep)


# 1: no neighbour; 2, 5: every rank; 1024, 1025: a block and one more; 5000: several blocks.
@pytest.mark.parametrize("n", [1, 2, 5, 33, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_order_statistics(backend: str, n: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(n)
    x = (torch.randn(n, generator=g) * 3).to(dtype)
    keep = torch.rand(n, generator=g) < 0.7
    keep[n // 2] = True
    for q in QS:
        for mask in (None, keep):
            scores_kept = x if mask is None else x[mask]
            truth = definition(scores_kept, q)
            eager = torch.quantile(scores_kept.float(), q)
            assert_within_budget(run(backend, x, q, mask), truth, eager, FORWARD, f"q={q}")


def test_exact_ranks_are_elements(backend: str) -> None:
    """No rounding where no interpolation is needed, over the whole range of fp32."""
    g = torch.Generator().manual_seed(1)
    x = torch.randint(-(2**31), 2**31 - 1, (257,), generator=g).to(torch.int32).view(torch.float32)
    x = torch.where(x.isfinite(), x, 0.0)
    ordered = x.sort().values
    for k in (0, 1, 64, 128, 255, 256):
        assert float(run(backend, x, k / 256)) == float(ordered[k])


def test_ties_and_signed_zeros(backend: str) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, 1.0, 1.0, -1.0, -0.0, 1.0])
    for q in QS:
        assert float(run(backend, x, q)) == pytest.approx(float(definition(x, q)), abs=1e-7)
    assert float(run(backend, torch.full((100,), 0.3), 0.123)) == float(torch.tensor(0.3))


def test_infinities(backend: str) -> None:
    inf = math.inf
    x = torch.tensor([-inf, 2.0, inf, inf, 1.0])
    assert float(run(backend, x, 0.0)) == -inf
    assert float(run(backend, x, 0.5)) == 2.0
    assert float(run(backend, x, 1.0)) == inf
    assert float(run(backend, x, 0.3)) == pytest.approx(1.2)
    # Between a number and an infinity: the upper one (see ops/test_extremes.py).
    for q in (0.6, 0.7):
        assert float(run(backend, x, q)) == inf
    assert float(run(backend, torch.full((4,), -inf), 0.4)) == -inf


def test_nan_is_seen_unless_left_out(backend: str) -> None:
    for bad in (math.nan, -math.nan):
        x = torch.tensor([1.0, bad, 2.0, 3.0])
        assert math.isnan(run(backend, x, 0.5))
        assert float(run(backend, x, 0.5, ~x.isnan())) == 2.0
    # A NaN rank, from NaN weak labels, is an answer and not an address.
    nan = torch.tensor(math.nan, dtype=torch.float64)
    assert math.isnan(run(backend, torch.tensor([1.0, 2.0]), nan))


def test_nothing_kept_is_above_every_score(backend: str) -> None:
    none = torch.zeros(3, dtype=torch.bool)
    assert float(run(backend, torch.tensor([1.0, math.nan, 2.0]), 0.5, none)) == math.inf
    assert float(run(backend, torch.empty(0), 0.5)) == math.inf


def test_strided_scores_and_masks(backend: str) -> None:
    x = torch.arange(20.0).view(10, 2)
    keep = torch.ones(10, 2, dtype=torch.bool)
    keep[0] = False
    assert float(run(backend, x[:, 1], 0.5)) == 10.0
    assert float(run(backend, x[:, 1], 0.0, keep[:, 1])) == 3.0
    with use_backend(backend):
        assert float(w2s_fast.quantile(x.t(), 1.0)) == 19.0


def test_quantile_tensor_and_repeats(backend: str) -> None:
    call = OPS["quantile"].sample(300, 0, torch.float32, device(), 3)
    a, b = (run(backend, call["scores"], call["q"], call["keep"]) for _ in range(2))
    assert a.dim() == 0 and a.dtype == torch.float32 and torch.equal(a, b)
    truth = OPS["quantile"].reference(call["scores"].double(), call["q"], call["keep"])
    assert_within_budget(a, truth, truth.float(), FORWARD)


def test_no_gradient_flows(backend: str) -> None:
    x = torch.randn(9, requires_grad=True)
    with use_backend(backend):
        assert not w2s_fast.quantile(x, 0.5).requires_grad


def test_opcheck_and_compile(backend: str) -> None:
    call = OPS["quantile"].sample(9, 0, torch.float32, device(), 3)
    args = (call["scores"], call["q"], call["keep"])
    with use_backend(backend):
        torch.library.opcheck(torch.ops.w2s_fast.quantile, args)
        step = torch.compile(
            lambda x: w2s_fast.quantile(x, 0.3), fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(step(args[0]), w2s_fast.quantile(args[0], 0.3))


def test_fp64_is_exact_and_many_elements_pass(backend: str) -> None:
    """fp64 takes the reference; more than 2^24 elements are refused by torch.quantile."""
    x = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert float(run(backend, x, 1.0)) == 1.0 + 1e-12
    if backend == "cpp":
        many = torch.zeros(2**24 + 3)
        many[5:8] = torch.tensor([3.0, 2.0, 1.0])
        assert float(run(backend, many, 1.0)) == 3.0


@pytest.mark.parametrize(
    ("scores", "q", "message"),
    [
        (torch.empty(0), 0.5, "shape \\(0,\\)"),
        (torch.tensor([1]), 0.5, "torch.int64"),
        (torch.tensor([1.0]), 1.5, "q is 1.5"),
    ],
)
def test_bad_input_names_the_value(scores: Tensor, q: float, message: str) -> None:
    with pytest.raises(w2s_fast.W2SError, match=message):
        w2s_fast.quantile(scores, q)
