"""Two classes in one launch: threshold, normaliser, loss, gradient, record.

``ops/test_cross_entropy.py`` compares the values with fp64 in small batches. Here batches take one
block or several, of CUDA's emulation in every order of threads, and one program of Triton or
several; thresholds are compared with the op ``quantile``. ``test_two_class_launches.py`` counts
what a call launches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.launches import serve_as_a_device
from torch import Tensor

from w2s_fast import cross_entropy
from w2s_fast.ops import dispatch, native_cuda, use_backend
from w2s_fast.ops.quantile.api import masked_quantile
from w2s_fast.ops.reference import cross_entropy_sample
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import assert_cross_entropy, run_cross_entropy

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
INF, NAN = float("inf"), float("nan")
SIZES = (1, 40, 1500)  # rows of a thread or two; of a warp and a part; of two blocks
TILE, BLOCKS = 32, 2  # of the programs that share a batch: 70 rows are two blocks of two tiles

BOTH = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                bool(dispatch.missing(name.split()[0]))
                or (name == "cuda" and not native_cuda.emulated()),
                reason=f"backend {name} is missing here: {dispatch.missing(name.split()[0])}",
            ),
        )
        for name in ("cuda", "triton", "triton programs")
    ],
    indirect=True,
)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Backend of a test; ``triton programs`` is Triton with several programs a batch."""
    name, *programs = str(request.param).split()
    if programs:
        from w2s_fast.kernels import two_class, two_class_grid

        monkeypatch.setattr(two_class, "MOST_ROWS", 0)
        monkeypatch.setattr(two_class_grid, "TILE", TILE)
        monkeypatch.setattr(two_class_grid, "MOST_BLOCKS", BLOCKS)
    return name


@pytest.fixture(autouse=True)
def memory_without_values() -> Iterator[None]:
    """Uninitialised memory is filled: scratch that a kernel reads before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def sample(kind: str, n: int, dtype: torch.dtype = FP32, **kw: Any) -> dict[str, Any]:
    regime = kw.pop("regime", "plain")
    return cross_entropy_sample(n, 2, dtype, "cpu", n, kind=kind, regime=regime) | kw


@BOTH
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["hard", "dense"])
def test_batches_match_fp64(
    backend: str, kind: str, n: int, request: pytest.FixtureRequest
) -> None:
    if n == SIZES[-1] and "programs" in request.node.callspec.id:
        pytest.skip("hundreds of tiles: see test_two_thousand_rows")
    for rule, reduction in (("prior", "mean"), ("median", "sum"), ("none", "mean")):
        call = sample(kind, n, rule=rule, aux=0.4, reduction=reduction)
        if n == 1:
            del call["weight"]  # the gradient of a mean of one row: nothing to take a budget from
        assert_cross_entropy(backend, call, upstream=0.5)


def test_two_thousand_rows() -> None:
    """The first batch that several programs of Triton share as they are."""
    pytest.importorskip("triton", reason="backend triton is missing")
    assert_cross_entropy("triton", sample("dense", 2049, rule="prior", aux=0.4, reduction="mean"))


def test_layout_of_programs() -> None:
    """Rows of all blocks cover the batch, and none is empty; sums have room for every block."""
    pytest.importorskip("triton", reason="backend triton is missing")
    from w2s_fast.kernels import two_class_grid as grid

    for n in (2049, 2**18, 2**18 + 1, 2**20, 10**7 + 1, 2**31 - 1):
        for selects, phases in ((True, grid.DIGITS + 1), (False, 2)):
            programs, blocks, tiles = grid.layout(n, selects)
            assert programs == phases * blocks and blocks <= grid.MOST_BLOCKS
            assert (blocks - 1) * tiles * grid.TILE < n <= blocks * tiles * grid.TILE


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The words through which programs of a batch find one another, of small blocks."""
    pytest.importorskip("triton", reason="backend triton is missing")
    from w2s_fast.kernels import two_class, two_class_grid

    monkeypatch.setattr(two_class, "MOST_ROWS", 0)
    monkeypatch.setattr(two_class_grid, "TILE", TILE)
    words = torch.zeros(two_class_grid.SIZE, dtype=torch.int64)
    monkeypatch.setattr(torch, "zeros", lambda *size, **kw: words)
    return words


@pytest.mark.parametrize(("rule", "phases"), [("median", 5), ("none", 2)])
def test_every_program_has_its_turn(counters: Tensor, rule: str, phases: int) -> None:
    """Three blocks: tickets and programs that are done, and phases that others may follow."""
    from w2s_fast.kernels import two_class_grid as grid

    with use_backend("triton"):
        weak_loss(torch.ones(70, 2), torch.full((70, 2), 0.5), rule=rule, aux=0.5)
    at = [int(counters[getattr(grid, name).value]) for name in ("_TICKET", "_DONE", "_COMPLETE")]
    assert at == [3 * phases, 3 * phases, phases - 1]


def test_a_program_waits_for_the_phase_before_its_own(
    counters: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter runs one program after another: this one would wait for ever."""
    from triton.runtime.interpreter import InterpreterBuilder

    from w2s_fast.kernels import two_class_grid as grid

    calls, run = [], InterpreterBuilder.create_atomic_rmw

    def counted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 20:
            raise TimeoutError("it waits")
        return run(*args)

    monkeypatch.setattr(InterpreterBuilder, "create_atomic_rmw", counted)
    counters[grid._TICKET.value] = 3  # the first block of the second phase
    with use_backend("triton"), pytest.raises(Exception, match="it waits"):
        weak_loss(torch.ones(70, 2), torch.full((70, 2), 0.5), rule="median", aux=0.5)
    assert int(counters.ne(0).sum()) == 1  # nothing but tickets was written


# The gradient of a loss a row, and of fp16, is made in backward.
@BOTH
@pytest.mark.parametrize("kind", ["hard", "dense"])
def test_gradients_that_wait_for_their_upstream(backend: str, kind: str) -> None:
    for dtype, reduction in ((FP32, "none"), (FP16, "none"), (FP16, "mean")):
        call = sample(kind, 40, dtype, rule="prior", aux=0.4, reduction=reduction)
        assert_cross_entropy(backend, call, upstream=0.5)
    call = sample(kind, 33, FP16, rule="median", aux=torch.tensor(0.3), reduction="none")
    assert_cross_entropy(backend, call | {"smoothing": 0.1, "softcap": 3.0, "z_loss": 0.01})


@BOTH
def test_a_threshold_that_is_a_number(backend: str) -> None:
    """It goes to the kernel as it is: the classes and gradients of the plain backend."""
    z = margins([-9.0, -0.5, 0.0, 0.8472979, 0.8472978, 9.0])  # logit(0.7) between two of them
    for threshold in (0.0, 0.3, 1.0):
        found = []
        for name in (backend, "ref"):
            x = z.clone().requires_grad_()
            with use_backend(name):
                rows, stats = cross_entropy(
                    x, torch.full((6, 2), 0.5), aux=0.5, threshold=threshold, reduction="none",
                    return_stats=True,
                )  # fmt: skip
                found.append((stats.hard_class, *torch.autograd.grad(rows.sum(), x)))
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1])


@BOTH
def test_a_coefficient_may_move_on_before_backward(backend: str) -> None:
    call = sample("dense", 9, FP16)
    grads = []
    for later in (0.5, 0.9):
        z, aux = call["logits"].clone().requires_grad_(), torch.tensor(0.5)
        with use_backend(backend):
            loss = weak_loss(z, call["weak"], rule="median", aux=aux).loss
            aux.fill_(later)
            grads += torch.autograd.grad(loss, z)
    assert torch.equal(grads[0].nan_to_num(7.0), grads[1].nan_to_num(7.0))


@BOTH
def test_batched_upstreams(backend: str) -> None:
    """A gradient of every sample of upstream factors at once, and no second derivative."""
    call = sample("dense", 20, BF16)
    z, weight = call["logits"].requires_grad_(), torch.rand(20).requires_grad_()
    with use_backend(backend):
        rows = weak_loss(
            z, call["weak"], weight=weight, rule="median", aux=0.3, reduction="none"
        ).loss
        up = torch.randn(3, 20).relu()
        many = torch.autograd.grad(rows, (z, weight), up, is_grads_batched=True, retain_graph=True)
        for i in range(3):
            one = torch.autograd.grad(rows, (z, weight), up[i], retain_graph=True)
            torch.testing.assert_close(many[0][i], one[0], atol=0, rtol=2**-7, equal_nan=True)
            torch.testing.assert_close(many[1][i], one[1], equal_nan=True)
        with pytest.raises(RuntimeError, match="not differentiable twice"):
            torch.autograd.grad(rows.sum(), z, create_graph=True)


@BOTH
def test_in_place_in_half_precision(backend: str) -> None:
    call = sample("dense", 40, FP16, rule="prior", aux=0.4, reduction="mean")
    plain = run_cross_entropy(backend, call)[1]
    assert torch.equal(run_cross_entropy(backend, call | {"inplace": True})[1], plain)
    leaf = call["logits"].clone().requires_grad_()
    z = leaf * 1
    with use_backend(backend):
        loss = weak_loss(z, call["weak"], reduction="mean", inplace=True).loss
        (first,) = torch.autograd.grad(loss, z, retain_graph=True)
        assert first.data_ptr() == z.data_ptr()
        with pytest.raises(RuntimeError, match="second backward"):
            torch.autograd.grad(loss, z)


@BOTH
@pytest.mark.parametrize("kind", ["hard", "dense"])
@pytest.mark.parametrize(
    "terms",
    [
        {"smoothing": 0.2, "z_loss": 0.01},
        {"softcap": 3.0, "z_loss": 0.02},
        {"focal_gamma": 2.0, "max_confidence": 0.9},
    ],
    ids=str,
)
def test_every_term(backend: str, kind: str, terms: dict[str, Any]) -> None:
    for regime, dtype in (("plain", FP32), ("masked", FP32), ("plain", BF16), ("confident", FP16)):
        call = sample(kind, 33, dtype, regime=regime, rule="prior", aux=0.3, **terms)
        assert_cross_entropy(backend, call)


# Views as models make them: columns of a wider head, every second row, labels beside others.
@BOTH
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_strides(backend: str, dtype: torch.dtype) -> None:
    call = sample("dense", 70, dtype, rule="median", aux=0.4)
    z, weak = call["logits"], call["weak"]
    wide = torch.full((70, 5), 9e9, dtype=dtype)
    wide[:, 3:] = z
    labels = torch.cat([weak, weak, weak], 1)[:, 1:3].flip(1).contiguous().to(dtype)
    for logits in (wide[:, 3:], torch.cat([z, z * 0 + 7], 1).view(140, 2)[::2]):
        assert_cross_entropy(backend, call | {"logits": logits, "weak": labels})
    room = torch.full((70, 5), 9e9, dtype=dtype)
    room[:, 1:3] = z
    out = run_cross_entropy(backend, call | {"logits": room[:, 1:3], "inplace": True})
    plain = run_cross_entropy(backend, call)
    assert torch.equal(out[1], plain[1])


@pytest.mark.skipif(not native_cuda.emulated(), reason="backend cuda is not emulated here")
def test_order_of_threads_changes_no_bit() -> None:
    for kind in ("hard", "dense"):
        call = sample(kind, 1500, rule="prior", aux=0.4, reduction="mean")
        results = []
        for order in (0, 1, 2, 2, 3, 4):
            native_cuda.library().set_order(order, 7 + len(results))
            out, grad, _ = run_cross_entropy("cuda", call)
            assert out.stats is not None
            results.append((out.loss, out.count, out.stats.threshold, out.stats.entropy, grad))
        native_cuda.library().set_order(0, 0)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def margins(values: list[float]) -> Tensor:
    """Logits (N, 2) with these margins, infinite ones of a masked class."""
    z = torch.tensor(values)
    open_end = torch.where(z > 0, 0.0, -INF)
    return torch.stack(
        [torch.where(z.isinf(), open_end, z), torch.where(z.isinf(), -INF - open_end, 0.0)], 1
    ).nan_to_num(nan=NAN, posinf=INF, neginf=-INF)


CASES = {
    "ties": [1.0, 1.0, 1.0, 2.0],
    "between": [-1.0, 3.0],
    "near": [1.0, 1.0000001, -1e30, 1e30],
    "zeros": [0.0, -0.0, -0.0, 0.0, 1.0],
    "one": [0.25],
    "infinite": [-INF, 1.0, INF, INF],
    "masked": [-INF, -INF, 0.5],
    "one NaN": [1.0, NAN, 2.0],
}


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_threshold_is_the_quantile_of_the_op(backend: str, name: str) -> None:
    """Bit for bit; the row that does not count has the smallest margin."""
    z = torch.cat([margins(CASES[name]), torch.tensor([[-50.0, 50.0]])])
    n = z.shape[0]
    weight = torch.ones(n)
    weight[-1] = 0
    weak = torch.stack([torch.full((n,), 0.7), torch.full((n,), 0.3)], 1)
    for rule in ("median", "prior"):
        with use_backend(backend):
            stats = weak_loss(
                z, weak, weight=weight, rule=rule, aux=0.5, return_stats=True, reduction="mean"
            ).stats
        q = 0.5 if rule == "median" else float(weak[0, 1].double())
        truth = masked_quantile(z[:, 0] - z[:, 1], q, weight != 0)
        assert stats is not None and stats.threshold is not None
        assert torch.equal(stats.threshold.nan_to_num(7.0), truth.sigmoid().nan_to_num(7.0))
        assert float(stats.count) == n - 1


@BOTH
def test_weak_mass_above_one(backend: str) -> None:
    """A share of more than 1, within the tolerance of soft labels, is 1: the largest margin."""
    z = margins([0.5, -1.0, 3.0])
    weak = torch.tensor([[0.0, 1.005]] * 3)
    with use_backend(backend):
        stats = weak_loss(z, weak, rule="prior", aux=0.5, return_stats=True).stats
    assert stats is not None and stats.threshold is not None
    assert torch.equal(stats.threshold, torch.tensor(3.0).sigmoid())


@BOTH
@pytest.mark.parametrize("kind", ["hard", "dense"])
def test_record_of_extreme_rows(backend: str, kind: str) -> None:
    """Every pair of numbers, NaN and infinities among them: as the plain backend in fp64."""
    values = torch.tensor([0.5, -2.0, INF, -INF, NAN, torch.finfo(FP32).min, 1e4, 0.5])
    z = torch.cartesian_prod(values, values)
    n = z.shape[0]
    weak = (
        torch.arange(n) % 2 if kind == "hard" else torch.tensor([[0.0, 1.0], [0.3, 0.7]] * (n // 2))
    )
    for rule in ("none", "fixed"):
        records = []
        for name, logits in ((backend, z), ("ref", z.double())):
            with use_backend(name):
                at = None if rule == "none" else torch.tensor(0.1, dtype=logits.dtype)
                out = weak_loss(logits, weak, rule=rule, threshold=at, aux=0.4, return_stats=True)
            records.append(out.stats)
        found, truth = records
        for name in ("loss", "lse", "max", "max_prob", "chosen_prob", "entropy", "agreement"):
            a, b = getattr(found, name), getattr(truth, name).to(getattr(found, name).dtype)
            torch.testing.assert_close(
                a, b, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
            )
        real = ~truth.lse.isnan()  # without a softmax the classes mean nothing
        for name in ("argmax", "hard_class", "coefficient"):
            a, b = getattr(found, name), getattr(truth, name).to(getattr(found, name).dtype)
            assert torch.equal(a[real], b[real]), name


@BOTH
def test_without_rows_that_count(backend: str) -> None:
    z = torch.tensor([[1.0, NAN], [0.0, 2.0]]).requires_grad_()
    empty = torch.zeros(0, 2)
    with use_backend(backend):
        for reduction in ("mean", "sum"):
            out = weak_loss(
                z * 1, torch.tensor([-100, -100]), rule="prior", aux=0.5, reduction=reduction
            )
            out.loss.backward()
            assert float(out.loss.detach()) == 0 and float(out.count) == 0
            assert z.grad is not None and bool((z.grad == 0).all())
            none = weak_loss(empty, empty, rule="median", aux=0.5, reduction=reduction)
            assert float(none.loss) == 0 and float(none.count) == 0
        at = weak_loss(
            z.detach(), torch.tensor([-100, -100]), rule="median", aux=0.5, return_stats=True
        ).stats
    assert at is not None and float(at.threshold) == 1.0  # +inf as a probability


@BOTH
def test_a_label_that_is_no_class_is_nan(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device cannot raise: its row is NaN, and so is a threshold that depends on the labels."""
    serve_as_a_device(backend, monkeypatch)
    z = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 1.0]]).requires_grad_()
    for label in (2, -1, 2**40):
        with use_backend(backend):
            out = weak_loss(
                z, torch.tensor([0, label, 1]), rule="median", aux=0.5, return_stats=True
            )
        (grad,) = torch.autograd.grad(out.loss, z)
        assert out.stats is not None and out.stats.loss.isnan().tolist() == [False, True, False]
        assert grad.isnan().any(1).tolist() == [False, True, False]
        with use_backend(backend):
            late = weak_loss(
                z.detach(), torch.tensor([0, label, 1]), rule="prior", aux=0.5, return_stats=True
            ).stats
        assert late is not None and late.threshold is not None and bool(late.threshold.isnan())
