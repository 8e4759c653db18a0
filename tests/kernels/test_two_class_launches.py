"""What a loss over two classes launches on a GPU: at most two kernels a direction, mostly one.

Counted on the host; kernels of large batches are not run. Values: ``test_two_class.py``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.launches import Launches, serve_as_a_device
from torch import Tensor

import w2s_fast
from w2s_fast import W2SError
from w2s_fast.ops import checks, dispatch, native_cuda, use_backend
from w2s_fast.ops.cross_entropy import autograd

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# One program of Triton, the most rows of one, and batches that several share.
SIZES = (1, 2048, 2049, 2**20)
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


def forward_of(backend: str, n: int) -> list[str]:
    """Return the launches of a forward pass: counters of several programs start at zero."""
    if backend == "cuda":
        return ["two_class"]
    return ["two_class"] if n <= 2048 else ["aten.zeros", "two_class_grid"]


def labels(kind: str, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64) if kind == "hard" else torch.full((n, 2), 0.5)


@BOTH
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_launches(
    backend: str, dtype: torch.dtype, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward: threshold, normaliser, loss, and the gradient unless it waits for its upstream."""
    serve_as_a_device(backend, monkeypatch)
    z = torch.zeros(n, 2, dtype=dtype).requires_grad_()
    forward = forward_of(backend, n)
    with use_backend(backend), Launches(backend, monkeypatch) as launches:
        for kind in ("hard", "dense"):
            for weight in (None, torch.ones(n)):
                for reduction in ("mean", "sum", "none"):
                    for threshold, aux in ((None, 0.5), ("median", 0.5), (0.3, 0.5), (None, 0.0)):
                        weak, up = labels(kind, n), torch.ones(n if reduction == "none" else ())
                        launches.take()
                        loss = w2s_fast.cross_entropy(
                            z, weak, weight=weight, aux=aux, threshold=threshold,
                            reduction=reduction,
                        )  # fmt: skip
                        what = (kind, weight is not None, reduction, threshold)
                        assert launches.take() == forward, what
                        if dtype == FP16 or reduction == "none":
                            torch.autograd.grad(loss, z, up)
                            assert launches.take() == ["two_class_gradient"], what


@BOTH
def test_upstream_of_a_finished_gradient_is_one_launch(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of two classes are scaled as one long row."""
    with use_backend(backend):
        kernels = dispatch.backend("cross_entropy", torch.zeros(1))
        with Launches(backend, monkeypatch) as launches:
            seen = []
            for grad in (torch.zeros(2**20, 2), torch.zeros(40, 3)[:, :2]):
                rows = autograd._long_rows(grad)
                seen.append(rows.shape[0])
                kernels.scale_(rows, torch.ones(()))
    assert seen == [1, 40] and launches.names.count("scale") == 2
    assert set(launches.names) <= {"scale", "aten.zeros", "aten.ones"}


@BOTH
def test_no_gradient_is_one_launch_too(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_as_a_device(backend, monkeypatch)
    z, weak = torch.zeros(9, 2), labels("dense", 9)
    with use_backend(backend), Launches(backend, monkeypatch) as launches:
        for reduction in ("mean", "none"):
            w2s_fast.cross_entropy(z, weak, aux=0.5, reduction=reduction)
            assert launches.take() == ["two_class"]


@BOTH
@pytest.mark.parametrize("n", [3, 2049])
def test_a_wrong_weight_ends_the_kernel(
    backend: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launch that reads weights on a device checks them, unless checks are switched off."""
    serve_as_a_device(backend, monkeypatch)
    if backend == "triton":
        from triton.runtime.interpreter import interpreter_builder

        options = replace(interpreter_builder.options, debug=True, sanitize_overflow=False)
        monkeypatch.setattr(interpreter_builder, "options", options)
    for wrong in (-1.0, float("nan")):
        weight = torch.ones(n)
        weight[-1] = wrong
        call = {"weight": weight, "aux": 0.5, "threshold": "median"}
        with use_backend(backend):
            with pytest.raises(Exception, match="a row weight is negative or NaN"):
                w2s_fast.cross_entropy(torch.zeros(n, 2), labels("dense", n), **call)
            with monkeypatch.context() as off:
                off.setattr(checks, "_ON_DEVICE", False)
                w2s_fast.cross_entropy(torch.zeros(n, 2), labels("dense", n), **call)


def test_triton_compiles_the_check_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``debug`` its assertions are left out."""
    pytest.importorskip("triton", reason="backend triton is missing")
    serve_as_a_device("triton", monkeypatch)
    with use_backend("triton"), Launches("triton", monkeypatch) as launches:
        for n in (3, 2049):
            for weight in (None, torch.ones(n)):
                w2s_fast.cross_entropy(torch.zeros(n, 2), labels("dense", n), weight=weight)
    assert [o["CHECK"] for o in launches.options] == [False, True] * 2
    assert [o["debug"] for o in launches.options] == [False, True] * 2


@BOTH
def test_weights_of_other_calls_are_still_checked(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More classes, sparse labels and fp64 have no kernel that checks them."""
    serve_as_a_device(backend, monkeypatch)
    z, weight = torch.zeros(2, 2), torch.tensor([1.0, -1.0])
    sparse = w2s_fast.SparseTargets(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    more = torch.zeros(2, 3), torch.full((2, 3), 1 / 3)
    with use_backend(backend):
        for logits, weak in (more, (z, sparse), (z.double(), labels("dense", 2).double())):
            with pytest.raises((RuntimeError, W2SError), match="weight is negative or NaN"):
                w2s_fast.cross_entropy(logits, weak, weight=weight)
