"""k-th value, top-fraction mask and large selections against a sort: exact, not within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import w2s_fast
from w2s_fast.ops import use_backend
from w2s_fast.ops.balanced import device as balanced_device
from w2s_fast.ops.balanced.api import class_counts
from w2s_fast.ops.quantile.api import _kth_value, _quantile, _top_mask
from w2s_fast.ops.quantile.keys import keys_of, score_of

MANY = 70_001  # above what the compiled core sorts out on one thread without a sample
INF = math.inf


def _normal(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, generator=g)


def _any_bits(n: int, g: torch.Generator) -> Tensor:
    x = torch.randint(-(2**31), 2**31 - 1, (n,), generator=g).to(torch.int32).view(torch.float32)
    return torch.where(x.isnan(), 0.5, x)


def _infinite(n: int, g: torch.Generator) -> Tensor:
    x = torch.randn(n, generator=g)
    x[torch.rand(n, generator=g) < 0.4] = INF
    x[torch.rand(n, generator=g) < 0.4] = -INF
    return x


KINDS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": _normal,
    "any bits": _any_bits,
    "infinite": _infinite,
    "equal": lambda n, g: torch.full((n,), 0.3),
    "two values": lambda n, g: (torch.rand(n, generator=g) < 0.5).float(),
    "ties": lambda n, g: torch.randn(n, generator=g).mul(4).round().div(4),
    "sorted": lambda n, g: torch.linspace(-1, 1, n),
    "reversed": lambda n, g: torch.linspace(1, -1, n),
    "denormal": lambda n, g: torch.randint(-99, 99, (n,), generator=g).float() * 1e-45,
    "zeros": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, 0.0, -0.0),
    "one apart": lambda n, g: torch.zeros(n).index_fill_(0, torch.tensor([n // 3]), 7.0),
}


def kth(x: Tensor, k: int | Tensor, keep: Tensor | None = None) -> float:
    return float(w2s_fast.kth_value(x, k, keep=keep))


@pytest.mark.parametrize("kind", KINDS)
def test_kth_value_is_the_kth_of_a_sort(backend: str, kind: str) -> None:
    n = MANY if backend == "cpp" else 1300
    g = torch.Generator().manual_seed(7)
    x = KINDS[kind](n, g)
    keep = torch.rand(n, generator=g) < 0.3
    for mask in (None, keep):
        ordered = (x if mask is None else x[mask]).sort().values
        m = ordered.numel()
        ranks = {1, 2, m // 5, m // 2, m - 1, m}
        with use_backend(backend):
            for k in sorted(ranks if backend == "cpp" else {1, m // 2, m}):
                assert kth(x, k, mask) == float(ordered[k - 1]), (kind, k)


@pytest.mark.parametrize("kind", KINDS)
def test_quantile_of_many(isa: str, kind: str) -> None:
    """Both neighbours of the rank, wherever the pivots fall."""
    g = torch.Generator().manual_seed(11)
    x = KINDS[kind](MANY, g)
    ordered = x.double().sort().values
    with use_backend("cpp"):
        for q in (0.0, 1e-6, 0.001, 0.25, 0.5, 0.93, 1 - 1e-6, 1.0):
            place = q * (MANY - 1)
            low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
            actual = float(w2s_fast.quantile(x, q))
            if low == high or place == math.floor(place):
                assert actual == float(low)
            else:
                expected = low + (place - math.floor(place)) * (high - low)
                assert actual == pytest.approx(float(expected), rel=1e-6, abs=1e-45)


def _sampled(n: int) -> Tensor:
    """Which scores csrc/cpu/select.cpp looks at before it chooses its pivots."""
    size = int(0.4 * n ** (2 / 3))
    stretch, word = n // size, 2**64 - 1

    def mix(i: int) -> int:
        i = ((i ^ (i >> 31)) * 0x9E3779B97F4A7C15) & word
        i = ((i ^ (i >> 29)) * 0xBF58476D1CE4E5B9) & word
        return i ^ (i >> 32)

    return torch.tensor([j * stretch + mix(j) % stretch for j in range(size)])


@pytest.mark.parametrize("trap", ["above", "below", "between"])
def test_a_sample_that_misleads_costs_time_only(isa: str, trap: str) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.rand(MANY, generator=g) * 0.01
    sampled = _sampled(MANY)
    x[sampled] = {"above": -9.0, "below": 9.0}.get(trap, 0.0)
    if trap == "between":
        x[sampled] = torch.linspace(-1, 1, len(sampled))
    ordered = x.sort().values
    keep = torch.ones(MANY, dtype=torch.bool)
    with use_backend("cpp"):
        for k in (len(sampled) + 5, MANY // 2, MANY - len(sampled) - 5):
            assert kth(x, k) == kth(x, k, keep) == float(ordered[k - 1])
        place = 17500.5
        actual = float(w2s_fast.quantile(x, place / (MANY - 1)))
    low, high = float(ordered[17500]), float(ordered[17501])
    assert low < actual < high and actual == pytest.approx((low + high) / 2, rel=1e-6)


def test_between_two_ties(isa: str) -> None:
    """The next score may lie behind the upper pivot, where nothing was copied out."""
    x = torch.zeros(MANY)
    x[::3] = 1.0
    rare = torch.zeros(MANY)
    rare[:7000] = 1.0
    rare[_sampled(MANY)] = 0.0  # both pivots are 0
    with use_backend("cpp"):
        for y in (x, rare):
            zeros = int((y == 0).sum())
            half = w2s_fast.quantile(y, (zeros - 0.5) / (MANY - 1))
            assert float(half) == pytest.approx(0.5, abs=1e-6)
        x[7] = math.nan  # must not be lost among counts of ties
        assert math.isnan(w2s_fast.quantile(x, 0.2))
        assert math.isnan(kth(x, 3))


def test_few_kept_among_many(isa: str) -> None:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(MANY, generator=g)
    for few in (1, 2, 40):
        keep = torch.zeros(MANY, dtype=torch.bool)
        keep[torch.randperm(MANY, generator=g)[:few]] = True
        ordered = x[keep].sort().values
        with use_backend("cpp"):
            assert [kth(x, k, keep) for k in range(1, few + 1)] == ordered.tolist()
            assert math.isnan(kth(x, few + 1, keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [1, 17, 1025, 66_000])
def test_agrees_with_torch(backend: str, n: int, dtype: torch.dtype) -> None:
    n = min(n, 1025) if backend == "triton" else n
    x = (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3).to(dtype)
    with use_backend(backend):
        for k in (1, (n + 1) // 2, n):
            actual = w2s_fast.kth_value(x, k)
            assert actual.dtype == torch.float32
            assert torch.equal(actual, torch.kthvalue(x.float(), k).values)
            assert torch.equal(actual, w2s_fast.kth_value(x, torch.tensor(k)))


def test_threads_change_nothing(isa: str) -> None:
    g = torch.Generator().manual_seed(2)
    n = 1 << 19
    x = torch.randn(n, generator=g).mul(1000).round()
    keep = torch.rand(n, generator=g) < 0.8
    answers = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use_backend("cpp"):
                q = [w2s_fast.quantile(x, p, keep=keep) for p in (0.1, 0.5, 0.987)]
                answers.append((torch.stack(q), w2s_fast.top_fraction_mask(x, 0.3, keep=keep)))
    finally:
        torch.set_num_threads(before)
    for value, mask in answers[1:]:
        assert torch.equal(value, answers[0][0]) and torch.equal(mask, answers[0][1])
    assert torch.equal(answers[0][1], top(x, 0.3, keep))


def top(x: Tensor, fraction: float, keep: Tensor | None) -> Tensor:
    """The definition: a stable descending sort of what is kept."""
    at = torch.arange(x.numel()) if keep is None else keep.nonzero().squeeze(1)
    order = x[at].double().sort(descending=True, stable=True).indices
    mask = torch.zeros(x.numel(), dtype=torch.bool)
    mask[at[order[: round(fraction * at.numel())]]] = True
    return mask


@pytest.mark.parametrize("kind", ["normal", "equal", "ties", "infinite", "two values", "zeros"])
def test_top_fraction_is_exact_and_takes_ties_from_the_front(backend: str, kind: str) -> None:
    n = MANY if backend == "cpp" else 1100
    g = torch.Generator().manual_seed(13)
    x = KINDS[kind](n, g)
    keep = torch.rand(n, generator=g) < 0.6
    for fraction in (0.0, 0.37, 1.0) if backend == "triton" else (0.0, 1e-4, 0.37, 0.5, 0.999, 1.0):
        for mask in (None, keep):
            with use_backend(backend):
                actual = w2s_fast.top_fraction_mask(x, fraction, keep=mask)
            assert torch.equal(actual, top(x, fraction, mask)), (kind, fraction)


def test_half_a_score_is_rounded_to_even(backend: str) -> None:
    x = torch.arange(5.0)
    with use_backend(backend):
        sizes = [int(w2s_fast.top_fraction_mask(x, f).sum()) for f in (0.1, 0.3, 0.5, 0.7)]
    assert sizes == [0, 2, 2, 4]  # of 0.5, 1.5, 2.5, 3.5


def test_shapes_strides_and_wide_dtypes(backend: str) -> None:
    x = torch.arange(24.0).view(4, 6).t()
    keep = torch.ones(4, 6, dtype=torch.bool).t()
    with use_backend(backend):
        mask = w2s_fast.top_fraction_mask(x, 0.25, keep=keep)
        assert mask.shape == x.shape and torch.equal(mask, x >= 18)
        close = torch.tensor([1.0, 1.0 + 1e-12, 1.0 + 2e-12], dtype=torch.float64)
        assert float(w2s_fast.kth_value(close, 2)) == 1.0 + 1e-12
        assert w2s_fast.top_fraction_mask(close, 0.34).tolist() == [False, False, True]


def test_nan_and_missing_ranks(backend: str) -> None:
    x = torch.tensor([1.0, math.nan, 3.0])
    with use_backend(backend):
        assert math.isnan(kth(x, 1))
        assert not w2s_fast.top_fraction_mask(x, 0.5).any()
        fine = ~x.isnan()
        assert kth(x, 2, fine) == 3.0
        assert math.isnan(kth(x, 3, fine))
        assert math.isnan(kth(x, torch.tensor(0), fine))
        assert w2s_fast.top_fraction_mask(x, 0.5, keep=fine).tolist() == [False, False, True]
        nothing = torch.zeros(3, dtype=torch.bool)
        assert not w2s_fast.top_fraction_mask(x, 1.0, keep=nothing).any()
        # A fraction that only the device knows is answered, not read.
        assert not w2s_fast.top_fraction_mask(x, torch.tensor(math.nan), keep=fine).any()


def test_no_gradient_and_opcheck(backend: str) -> None:
    x = torch.randn(9, requires_grad=True)
    with use_backend(backend):
        assert not w2s_fast.kth_value(x, 3).requires_grad
        torch.library.opcheck(torch.ops.w2s_fast.kth_value, (x.detach(), torch.tensor(3), None))
        half = torch.tensor(0.5, dtype=torch.float64)
        torch.library.opcheck(torch.ops.w2s_fast.top_mask, (x.detach(), half, None))
        step = torch.compile(
            lambda x: w2s_fast.top_fraction_mask(x, 0.3), fullgraph=True, backend="aot_eager"
        )
        assert int(step(x).sum()) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: w2s_fast.kth_value(x, 0), "k is 0"),
        (lambda x: w2s_fast.kth_value(x, 4), "number of scores, 3"),
        (lambda x: w2s_fast.kth_value(x, 1.5), "k is the float 1.5"),
        (lambda x: w2s_fast.top_fraction_mask(x, -0.1), "fraction is -0.1"),
        (lambda x: w2s_fast.top_fraction_mask(x, math.nan), "fraction is nan"),
        (lambda x: w2s_fast.top_fraction_mask(x.int(), 0.5), "torch.int32"),
        (lambda x: w2s_fast.quantile(x, torch.rand(2)), "q has shape \\(2,\\)"),
        (lambda x: w2s_fast.quantile(x, 0.5, keep=torch.ones(3)), "torch.float32"),
        (lambda x: w2s_fast.quantile(x, 0.5, keep=torch.ones(2).bool()), "\\(2,\\)"),
        (lambda x: w2s_fast.quantile(x, 0.5, group="world"), "group is 'world'"),
    ],
)
def test_bad_input_names_the_value(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(w2s_fast.W2SError, match=message):
        call(torch.arange(3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_keys_sort_as_scores_do(dtype: torch.dtype) -> None:
    x = torch.tensor([-INF, -3e38, -1.0, -1e-45, 0.0, 1e-45, 1e-38, 2.0, INF], dtype=dtype)
    keys = keys_of(x)
    unsigned = keys if dtype == torch.float32 else keys ^ -(2**63)
    assert (unsigned.diff() > 0).all()
    assert torch.equal(score_of(keys, dtype), x)
    assert torch.equal(keys_of(-torch.zeros(1, dtype=dtype)), keys_of(torch.zeros(1, dtype=dtype)))


class NoReads(TorchDispatchMode):
    """Fails where a value would be read on the host: on a GPU that waits for the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal"), name
        return func(*args, **(kwargs or {}))


def test_device_code_reads_nothing_on_the_host() -> None:
    """What a CUDA tensor goes through, the Triton launches apart, run here on CPU."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(1))
    keep, z, prior = x > -1, x.view(10, 5), torch.rand(5)
    part = torch.tensor(0.4, dtype=torch.float64)
    # Their operators would hide what they call from the mode.
    with use_backend("ref"), NoReads():
        _quantile(x, part, keep)
        _kth_value(x, torch.tensor(3), keep)
        mask = _top_mask(x, part, keep)
        counts = class_counts(prior, keep[:10].sum())
        bias, hard = balanced_device.solve(z, counts, keep[:10])
    assert int(mask.sum()) == round(0.4 * int(keep.sum()))
    assert hard.shape == (10,) and bias.shape == (5,)


@pytest.mark.slow
def test_more_elements_than_torch_quantile_takes() -> None:
    n = 2**24 + 1
    x = torch.zeros(n)
    x[5:8] = torch.tensor([3.0, 2.0, 1.0])
    x[n - 2] = -4.0
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.5)
    with use_backend("cpp"):
        assert float(w2s_fast.quantile(x, 1.0)) == 3.0
        assert float(w2s_fast.quantile(x, 0.5)) == 0.0
        assert [kth(x, k) for k in (1, 2, n - 2, n)] == [-4.0, 0.0, 1.0, 3.0]
        mask = w2s_fast.top_fraction_mask(x, 5 / n)
    assert mask.nonzero().squeeze(1).tolist() == [0, 1, 5, 6, 7]
