"""The CUDA kernels as the host emulates them: every layout, every order of threads, every byte.

The op tests run them too (backend ``cuda``); here the device is chosen. Small limits split short
rows over clusters, or leave no room to keep them on chip, so that each path of the kernels runs at
a size where fp64 is affordable. What only a GPU can show stays open: speed, and its own memory
model.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from w2s_fast import W2SError
from w2s_fast.ops import dispatch, native_cuda, use_backend
from w2s_fast.ops.loss_call import Index, LossSpec, RowCall, Stat, new_record
from w2s_fast.ops.quantile.api import masked_quantile
from w2s_fast.ops.reference import KINDS, REGIMES, cross_entropy_sample
from w2s_fast.ops.targets import LossInputs, SparseTargets, make_inputs
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import (
    BACKWARD,
    assert_cross_entropy,
    assert_within_budget,
    run_cross_entropy,
)

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
H200 = (232448, 8, 112 * 1024, 74 * 1024)
# Bytes of a block, blocks of a cluster, bytes from which a row is split, bytes wanted of a part.
DEVICES = {
    "one block": H200,
    "cluster of 2": (H200[0], 2, 1, 1),
    "cluster of 8": (H200[0], 8, 1, 1),
    "no room": (2000, 1, 1, 1),
}
ORDERS = {"forward": 0, "reverse": 1, "random": 2, "alone": 3, "alone reverse": 4}
LATE, OPEN = {"rule": "median", "aux": 0.4}, {"rule": "argmax", "aux": 0.4}

pytestmark = pytest.mark.skipif(
    not native_cuda.emulated() or bool(dispatch.missing("cuda")),
    reason=f"backend cuda is not emulated here: {dispatch.missing('cuda')}",
)


@pytest.fixture
def device() -> Iterator[ModuleType]:
    library = native_cuda.library()
    yield library
    library.set_limits(*H200)
    library.set_order(0, 0)


def sample(kind: str, n: int, v: int, dtype: torch.dtype = FP32, **kw: Any) -> dict[str, Any]:
    regime = kw.pop("regime", "plain")
    return cross_entropy_sample(n, v, dtype, "cpu", n + v, kind=kind, regime=regime) | kw


# 3: blocks of a cluster without a chunk; 130: warps without one; 1003: rows start anywhere.
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(device: ModuleType, kind: str, name: str) -> None:
    device.set_limits(*DEVICES[name])
    for v, dtype, rule in ((3, FP32, LATE), (130, FP16, OPEN), (1003, BF16, LATE)):
        extra = {"smoothing": 0.1, "softcap": 20.0, "z_loss": 0.01} if v == 130 else {}
        assert_cross_entropy("cuda", sample(kind, 5, v, dtype, **rule, **extra))
        inplace = sample(kind, 5, v, dtype, **rule, inplace=True)
        assert_cross_entropy("cuda", inplace, upstream=0.5)


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("regime", REGIMES[1:])
def test_regimes(device: ModuleType, regime: str, name: str) -> None:
    device.set_limits(*DEVICES[name])
    for kind in KINDS:
        assert_cross_entropy("cuda", sample(kind, 5, 300, FP32, regime=regime, **OPEN))


# Two barriers apart, threads run in any order: a result that depends on it lacks a barrier. In
# place it would also read what another thread has overwritten.
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_order_of_threads_changes_no_bit(device: ModuleType, kind: str, name: str) -> None:
    device.set_limits(*DEVICES[name])
    late, focal = {**LATE, "focal_gamma": 2.0}, {**OPEN, "focal_gamma": 1.5, "smoothing": 0.1}
    for dtype, extra in ((BF16, late), (FP32, focal)):
        call = sample(kind, 5, 2051, dtype, inplace=True, **extra)
        if isinstance(call["weak"], SparseTargets):
            # The student's own class comes last: two threads write its entry, in this order.
            ids, probs, rest = call["weak"]
            call["weak"] = SparseTargets(ids.flip(1), probs.flip(1), rest)
        results = []
        for order in (0, 1, 2, 2, 3, 4):
            device.set_order(order, 7 + len(results))
            out, grad, _ = run_cross_entropy("cuda", call)
            assert out.stats is not None
            results.append((out.loss, out.stats.entropy, out.stats.argmax, grad))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


# Gradient, logits and targets that start at different places of their 16 bytes.
@pytest.mark.parametrize("name", ["one block", "cluster of 8", "no room"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_rows_out_of_step(device: ModuleType, dtype: torch.dtype, name: str) -> None:
    device.set_limits(*DEVICES[name])
    for kind in KINDS:
        for lead in (1, 5):
            call = sample(kind, 5, 517, dtype, **OPEN)
            z, weak = call["logits"], call["weak"]
            wide = torch.full((z.shape[0], z.shape[1] + lead), 6e4, dtype=dtype)
            wide[:, lead:] = z
            if kind == "dense" and lead == 5:
                call["weak"] = torch.cat([weak[:, :2], weak], 1)[:, 2:].to(dtype)
            assert_cross_entropy("cuda", call | {"logits": wide[:, lead:]})
            # reduction none: record first, then the gradient from it.
            rows = call | {"logits": wide[:, lead:], "reduction": "none"}
            assert_cross_entropy("cuda", rows, upstream=torch.arange(5.0))


def traffic(device: ModuleType, call: dict[str, Any]) -> tuple[int, int, int, int]:
    p = make_inputs(call["logits"], call["weak"])
    n, v = p.logits.shape
    grad = torch.full((n, v + 24), 5.0, dtype=p.logits.dtype)[:, :v]
    with use_backend("cuda"):
        serve = dispatch.backend("cross_entropy", p.logits)
        device.take_traffic()
        serve.rows(RowCall(p, LossSpec(), *new_record(p), grad=grad, scale=torch.ones(())))
    assert bool((grad.as_strided((n, 24), (v + 24, 1), v)[:-1] == 5.0).all()), "gap between rows"
    return device.take_traffic()


def test_a_row_is_read_once_and_written_once(device: ModuleType) -> None:
    """The floor, in bytes of global memory, all of it in accesses of 16 bytes."""
    n, v = 3, 1536
    for name, reads in (("one block", 1), ("cluster of 2", 1), ("cluster of 8", 1), ("no room", 2)):
        device.set_limits(*DEVICES[name])
        for dtype in (FP32, BF16):
            size = n * v * dtype.itemsize
            blocks = 8 if name == "cluster of 8" else 2
            wide, narrow, written, entries = traffic(device, sample("hard", n, v, dtype))
            # Where nothing is kept, each thread looks once more for its maximum.
            spare = 0 if name != "no room" else n * 512 * 16
            assert reads * size <= wide <= reads * size + spare
            assert written == size
            # The top-k class of each row, by every block; the entry that it overwrites.
            assert narrow <= n * blocks * dtype.itemsize and entries == n * dtype.itemsize
    device.set_limits(*H200)
    for targets in (FP32, BF16):
        call = sample("dense", n, v, BF16)
        call["weak"] = call["weak"].to(targets)
        wide, narrow, written, entries = traffic(device, call)
        assert wide == n * v * (2 + targets.itemsize) and written == n * v * 2
        assert narrow <= n * 2 and entries == 0


def test_odd_rows_are_peeled(device: ModuleType) -> None:
    """Only the first and the last chunk of a row may be narrow: less than 16 bytes each."""
    n, v = 4, 2049
    for name in ("one block", "cluster of 2", "cluster of 8"):
        device.set_limits(*DEVICES[name])
        # Gradients of the same stride lie in step with the logits.
        call = sample("hard", n, v, BF16)
        room = torch.zeros(n, v + 24, dtype=BF16)
        room[:, :v] = call["logits"]
        call["logits"] = room[:, :v]
        wide, narrow, written, entries = traffic(device, call)
        assert narrow + entries <= n * (4 * 16 + 9 * 2)
        assert wide >= n * (v * 2 - 32) and written >= n * (v * 2 - 32)


def test_single_rows_match_fp64_at_real_sizes(device: ModuleType) -> None:
    """A vocabulary of 128256 on the layout of an H200: a cluster of four blocks."""
    for v, cluster in ((128256, 4), (50257, 1)):
        call = sample("rest", 2, v, BF16, **OPEN)
        p = make_inputs(call["logits"], call["weak"])
        assert tiling_of(device, p)["cluster"] == cluster
        assert_cross_entropy("cuda", call)


def tiling_of(device: ModuleType, p: LossInputs, limits: tuple[int, ...] = H200) -> dict[str, Any]:
    call = RowCall(p, LossSpec(), torch.empty(0), torch.empty(0))
    return device.tiling_of_rows(call.packed(device.RowCall, 0.0, 0.0, 1.0), *limits)


# Bytes of shared memory that one block may use, and of one multiprocessor; blocks of a cluster.
MEMORY = {"sm_80": (166_912, 1), "sm_90": (232_448, 8), "sm_100": (232_448, 8)}


@pytest.mark.parametrize("arch", MEMORY)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_shared_memory_budget(device: ModuleType, arch: str, dtype: torch.dtype) -> None:
    """No layout asks for more than the device has, and rows that fit stay on chip."""
    shared, cluster = MEMORY[arch]
    limits = (shared, cluster, H200[2], H200[3])
    for v in (2, 1000, 32000, 50257, 65536, 128256, 151936, 262144, 524288, 2**20):
        hard = LossInputs(
            torch.empty(1, v, dtype=dtype), torch.zeros(1, 1).long(), *[None] * 3, -100
        )
        dense = hard._replace(ids=None, probs=torch.empty(1, v))
        for p in (hard, dense):
            s = tiling_of(device, p, limits)
            assert 0 < s["shared"] <= shared and s["cluster"] <= cluster
            assert 32 <= s["threads"] <= 512
            row = v * (dtype.itemsize + (4 if p.ids is None else 0))
            assert s["resident"] == (row <= cluster * (shared - 4096)), (v, s)
            if s["resident"]:
                assert s["tile"] * s["cluster"] * (16 // dtype.itemsize) >= v


def test_more_listed_classes_than_fit(device: ModuleType) -> None:
    device.set_limits(*DEVICES["no room"])
    ids = torch.arange(300).expand(2, 300)
    weak = SparseTargets(ids, torch.full((2, 300), 1 / 300))
    with use_backend("cuda"), pytest.raises(W2SError, match="300 top-k classes"):
        weak_loss(torch.zeros(2, 400), weak)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_another_shard(device: ModuleType, kind: str) -> None:
    """-1 in the record: the entry belongs to another part of the vocabulary and is not written."""
    call = sample(kind, 5, 67)
    p = make_inputs(call["logits"].nan_to_num(0.5), call["weak"], call["weight"])
    spec = LossSpec("argmax", 0.4)
    grads, truth = [], None
    for dtype, backend in ((torch.float64, "ref"), (FP32, "ref"), (FP32, "cuda")):
        q = LossInputs(*(t.to(dtype) if _is_float(t) else t for t in p))
        stats, index = new_record(q)
        with use_backend(backend):
            serve = dispatch.backend("cross_entropy", q.logits)
            serve.rows(RowCall(q, spec, stats, index, spec.row_rule(67)))
            index[Index.SELF] = index[Index.ARGMAX] = torch.tensor([-1, 3, -1, 4, -1])
            stats[Stat.LOGS] += 1.0  # the other shards' part
            grad = torch.empty_like(q.logits)
            scale = torch.ones((), dtype=dtype).expand(5)
            serve.gradient(RowCall(q, spec, stats, index, grad=grad, row_scale=scale))
        grads.append(grad)
    truth, eager, actual = grads
    assert_within_budget(actual, truth, eager, BACKWARD)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@pytest.mark.parametrize("order", ORDERS)
def test_quantile_in_any_order_of_threads(device: ModuleType, order: str) -> None:
    """Several blocks that wait for one another; scores and masks that start anywhere."""
    device.set_order(ORDERS[order], 3)
    g = torch.Generator().manual_seed(5)
    for dtype in (FP32, BF16, FP16):
        for lead in (0, 1, 3):
            x = torch.rand(2100, generator=g).to(dtype)[lead:]
            keep = (torch.rand(2100, generator=g) < 0.8)[lead:]
            for q in (0.0, 0.31, 0.5, 1.0):
                with use_backend("cuda"):
                    found = masked_quantile(x, q, keep)
                scores_kept = x[keep]
                truth = torch.quantile(scores_kept.double(), q)
                assert_within_budget(found, truth, torch.quantile(scores_kept.float(), q), 2.0)


def test_successor_beyond_the_bins(device: ModuleType) -> None:
    """The next score shares 22 bits with the k-th, or 11, or none; or there is no next one."""
    one = torch.tensor(1.0)
    near = torch.nextafter(one, one + 1)
    for pair in ((1.0, float(near)), (1.0, 1.001), (1.0, 1.4), (-3.0, 5e9), (2.0, 2.0)):
        x = torch.tensor([pair[0], pair[1], -1e30, 1e30])
        with use_backend("cuda"):
            found = masked_quantile(x, 0.5, None)
        assert_within_budget(found, x.double().quantile(0.5), x.quantile(0.5), 2.0)
        with use_backend("cuda"):
            assert float(masked_quantile(x[:1], 0.7, None)) == pair[0]


def passed(
    p: LossInputs, spec: LossSpec, scale: float = 1.0, backend: str = "cuda"
) -> tuple[Tensor, Tensor, Tensor]:
    """Record and gradient of one pass."""
    stats, index = new_record(p)
    grad = torch.empty_like(p.logits)
    by = torch.full((), scale, dtype=p.accumulator)
    with use_backend(backend):
        serve = dispatch.backend("cross_entropy", p.logits)
        rule = spec.row_rule(p.logits.shape[1])
        serve.rows(RowCall(p, spec, stats, index, rule, grad=grad, scale=by))
    return stats, index, grad


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_left_out(device: ModuleType, kind: str, name: str) -> None:
    """No other number and no gradient depends on whether the entropy is computed."""
    device.set_limits(*DEVICES[name])
    for dtype, smoothing in ((BF16, 0.0), (FP32, 0.0), (FP16, 0.1)):
        if kind == "rest" and smoothing:
            continue
        call = sample(kind, 5, 517, dtype, regime="masked")
        p = make_inputs(call["logits"], call["weak"])
        with_it, without = (
            passed(p, LossSpec("argmax", 0.4, smoothing=smoothing, entropy=wanted))
            for wanted in (True, False)
        )
        rows = [s for s in Stat if s is not Stat.ENTROPY]
        assert torch.equal(with_it[0][rows].nan_to_num(7.0), without[0][rows].nan_to_num(7.0))
        assert torch.equal(with_it[1], without[1])
        assert torch.equal(with_it[2].nan_to_num(7.0), without[2].nan_to_num(7.0))
        assert bool((with_it[0][Stat.ENTROPY] != 0).any())
        built = kind != "dense" and name != "no room" and not smoothing
        assert bool((without[0][Stat.ENTROPY] == 0).all()) == built


@pytest.mark.parametrize("name", ["one block", "cluster of 8", "no room"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_maxima_on_both_sides_of_near(device: ModuleType, dtype: torch.dtype, name: str) -> None:
    """One thread's maximum moves from below 4096, where exponents are taken from 0, to above."""
    device.set_limits(*DEVICES[name])
    v = 1003
    noise = torch.randn(8, v, generator=torch.Generator().manual_seed(3))
    steps = torch.linspace(0, 1, v)
    rows = torch.stack([
        noise[0] + 4096 * steps + 8, noise[1] + 4090, noise[2] + 4104, noise[3] - 4096,
        noise[4] - 5000, noise[5] - 6000 * (1 - steps), 3 * noise[6] + 4000, noise[7] * 1e30,
    ])  # fmt: skip
    for spec in (LossSpec("argmax", 0.4), LossSpec("argmax", 0.4, entropy=False)):
        p = make_inputs(rows.to(dtype), torch.arange(8) * 9)
        exact = p._replace(logits=p.logits.double())
        truth, _, grads = passed(exact, spec, backend="ref")
        eager, _, eager_grads = passed(p, spec, backend="ref")
        ours, index, grad = passed(p, spec)
        assert index[Index.ARGMAX].equal(p.logits.argmax(1))
        for s in (Stat.LOSS, Stat.LOGS, Stat.ENTROPY, Stat.SCORE)[:: 1 if spec.entropy else 3]:
            assert_within_budget(ours[s], truth[s], eager[s], 4.0)
        assert_within_budget(grad, grads, eager_grads, BACKWARD)


@pytest.mark.parametrize("kind", KINDS)
def test_any_upstream_factor(device: ModuleType, kind: str) -> None:
    """A factor scales the gradient and nothing else, also where its slope would overflow."""
    call = sample(kind, 5, 517)
    p = make_inputs(call["logits"].nan_to_num(0.5), call["weak"])
    for smoothing in (0.0, 0.1) if kind != "rest" else (0.0,):
        spec = LossSpec("argmax", 0.4, smoothing=smoothing)
        one = passed(p, spec)[2].double()
        for power in (-120, -64, 60, 120):
            scaled = passed(p, spec, 2.0**power)[2].double() * 2.0**-power
            assert torch.allclose(scaled, one, rtol=1e-5, atol=1e-7)
    if kind == "rest":  # the residual falls on classes of a mass of e^-51: a slope of 1e21
        z = torch.full((1, 67), -55.0).index_fill(1, torch.tensor([5]), 0.0)
        tail = SparseTargets(torch.tensor([[5]]), torch.tensor([[0.9]]), torch.tensor([0.1]))
        p = make_inputs(z, tail)
        one, scaled = (passed(p, LossSpec(), by)[2].double() / by for by in (1.0, 2.0**60))
        assert bool(one[0, 6] < -1e-3) and torch.allclose(scaled, one, rtol=1e-5)
    # Exactly 0 where p and the target are both 1, whatever the factor.
    sure = torch.full((1, 67), -1e4).index_fill(1, torch.tensor([5]), 3.1)
    weak = {"hard": torch.tensor([5]), "dense": sure.softmax(1)}
    for target in weak.values():
        grad = passed(make_inputs(sure, target), LossSpec(), 1 / 3)[2]
        assert float(grad.abs().max()) == 0


@pytest.mark.parametrize("name", ["one block", "cluster of 8", "no room"])
def test_first_of_equal_classes(device: ModuleType, name: str) -> None:
    """Also where a thread reads the end of a row after its whole chunks."""
    device.set_limits(*DEVICES[name])
    for lead in (0, 3):
        z = torch.zeros(2, 1003 + lead, dtype=BF16)[:, lead:]
        weak = torch.full((2, 1003 + lead), 1 / 1024, dtype=BF16)[:, lead:]
        index = passed(make_inputs(z, weak), LossSpec())[1]
        assert index[[Index.ARGMAX, Index.WEAK]].tolist() == [[0, 0], [0, 0]]
