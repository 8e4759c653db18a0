"""Two classes in one launch: threshold, normaliser, loss, gradient, record.

``ops/test_cross_entropy.py`` compares the values with fp64 in small batches. Here batches take one
block or several, of CUDA's emulation in every order of threads; thresholds are compared with the op
``quantile``; and what a call launches is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import w2s_fast
from w2s_fast.ops import dispatch, native_cuda, use_backend
from w2s_fast.ops.quantile.api import masked_quantile
from w2s_fast.ops.reference import cross_entropy_sample
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import assert_cross_entropy, run_cross_entropy

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
INF, NAN = float("inf"), float("nan")
MOST_ROWS = 2048  # of one program of Triton
SIZES = (1, 40, 1500)  # rows of a thread or two; of a warp and a part; of two blocks

BOTH = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                bool(dispatch.missing(name)) or (name == "cuda" and not native_cuda.emulated()),
                reason=f"backend {name} is missing here: {dispatch.missing(name)}",
            ),
        )
        for name in ("cuda", "triton")
    ],
)


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
def test_batches_match_fp64(backend: str, kind: str, n: int) -> None:
    for rule, reduction in (("prior", "mean"), ("median", "sum"), ("none", "mean")):
        call = sample(kind, n, rule=rule, aux=0.4, reduction=reduction)
        if n == 1:
            del call["weight"]  # the gradient of a mean of one row: nothing to take a budget from
        assert_cross_entropy(backend, call, upstream=0.5)


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


def serve_as_a_device(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the host checks of labels in its own memory."""
    with use_backend(backend):
        served = dispatch.backend("cross_entropy", torch.zeros(1))
    monkeypatch.setattr(served, "check_labels", lambda p: None)


# Views and allocations: nothing runs on the device.
NO_LAUNCH = {
    "aten.detach", "aten.alias", "aten.view", "aten.unbind", "aten.unsqueeze", "aten.empty",
    "aten.empty_like", "aten.new_empty", "aten.as_strided", "aten.slice", "aten.select",
    "aten.expand", "aten.new_empty_strided",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Names of the operators and kernels that a device would run."""

    def __init__(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: list[str] = []
        self.within = False  # the interpreter of Triton moves tensors by operators of its own
        if backend == "cuda":
            library = native_cuda.library()
            for name in ("rows", "fixup", "gradient", "scale", "quantile", "two_class"):
                monkeypatch.setattr(library, name, self._counted(name, getattr(library, name)))
        else:
            from triton.runtime.interpreter import GridExecutor

            launch = GridExecutor.__call__

            def launched(grid: Any, *args: Any, **kwargs: Any) -> Any:
                return self._counted(grid.fn.__name__, launch)(grid, *args, **kwargs)

            monkeypatch.setattr(GridExecutor, "__call__", launched)

    def _counted(self, name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
        def launched(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            self.within = True
            result = launch(*args, **kwargs)
            self.within = False
            return result

        return launched

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).rpartition(".")[0]
        if not (self.within or name in NO_LAUNCH):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["hard", "dense"])
@pytest.mark.parametrize("large", [False, True])
def test_one_launch(
    backend: str, kind: str, large: bool, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, threshold, normaliser and gradient of a batch, whatever the rule."""
    n = 32 if not large else 2**14 if backend == "cuda" else MOST_ROWS
    torch.use_deterministic_algorithms(False)
    # What the host checks of CPU tensors; row weights on a device are asserted apart.
    serve_as_a_device(backend, monkeypatch)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, 2, generator=g).requires_grad_()
    weak = torch.randint(2, (n,), generator=g) if kind == "hard" else z.detach().softmax(1)
    with use_backend(backend), Launches(backend, monkeypatch) as launches:
        for threshold in (None, "median"):
            loss = w2s_fast.cross_entropy(
                z, weak, aux=0.5, threshold=threshold, reduction=reduction
            )
            assert loss.requires_grad
        w2s_fast.cross_entropy(z, weak, reduction=reduction)
        w2s_fast.cross_entropy(z, weak, aux=0.5, threshold=0.3, reduction=reduction)
    one = "two_class" if backend == "cuda" else "two_class_kernel"
    # A number becomes a scalar of the device.
    assert launches.names == [one] * 3 + ["aten.full", one]
    assert z.grad is None
