"""CUDA backend of the weak-to-strong cross-entropy: passes device addresses to csrc/cuda.

Same phases as the plain torch backend. A row stays in shared memory (of a cluster of blocks where
it is long), so it is read once and written once. Nothing waits for the device and nothing is
allocated by a launch: calls can be captured into a CUDA graph. A label outside the classes, or
listed twice, turns its row's loss and gradient into NaN.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops import native_cuda as native
from w2s_fast.ops.checks import checks_on_device
from w2s_fast.ops.cross_entropy.ref import gradient_buffer as gradient_buffer
from w2s_fast.ops.dtypes import DTYPE_CODES
from w2s_fast.ops.loss_call import LossResult, LossSpec, RowCall, RowRule, empty_record
from w2s_fast.ops.targets import LossInputs, check_labels

FIXES_IN_PLACE = True
GUESSES_GATES = False
READS_TARGET_LOGITS = False
# The rows of a fused head whose softmax factor changes late are a Triton kernel.
FIXES_ANY_MASS = importlib.util.find_spec("triton") is not None
LATE_TWO_CLASS = True
SUMS_TWO_CLASS = False


def rows(call: RowCall) -> None:
    """Fill the record and, with ``grad``, write the gradient; see the reference backend."""
    check_labels(call.inputs)
    _launch("rows", call)


def fixup(call: RowCall) -> None:
    """Close the gate of rows whose SCORE is below the threshold: record and gradient."""
    _launch("fixup", call)


def gradient(call: RowCall) -> None:
    """Write row_scale * dloss/dz (N, V) from the record; rows that do not count get exactly 0."""
    _launch("gradient", call)


def takes_two_class(p: LossInputs, spec: LossSpec) -> bool:
    """Return whether ``two_class`` serves a call with hard or dense labels."""
    return p.logits.shape[0] <= native.library().MAX_SCORES


def two_class(
    p: LossInputs, spec: LossSpec, grad: Tensor | None, mean: bool, losses: Tensor | None = None
) -> LossResult:
    """Compute threshold, normaliser, loss and gradient of two classes; ``losses`` (N,) on request.

    One launch.
    """
    check_labels(p)
    library, device = native.library(), p.logits.device
    stats, index = empty_record(p, spec.record)
    at, number = spec.threshold_and_number()
    call = RowCall(p, spec, stats, index, spec.row_rule(2), at, grad)
    scratch = torch.empty(library.TWO_CLASS_SCRATCH, dtype=torch.int64, device=device)
    out = torch.empty(3, dtype=torch.float32, device=device)
    with _packed(call, -math.inf if number is None else number) as packed:
        error = library.two_class(
            packed, spec.threshold_from(), mean, scratch.data_ptr(), out.data_ptr(),
            0 if losses is None else losses.data_ptr(), checks_on_device(p.weight),
            native.stream_of(p.logits),
        )  # fmt: skip
    native.check(error, f"two_class of {p.logits.shape[0]} rows")
    loss, count, at = out.unbind()
    threshold = at if call.rule is RowRule.MARGIN else None
    return LossResult(stats, index, loss, count, threshold, (grad,), scalars=out)


def two_class_gradient(
    p: LossInputs, spec: LossSpec, scalars: Tensor, upstream: Tensor, mean: bool, grad: Tensor
) -> None:
    """Write the gradient of a finished ``two_class``, times the 0-d or (N,) upstream: one launch.

    ``scalars`` are those of its result.
    """
    call = RowCall(p, spec, *empty_record(p, False), spec.row_rule(2), grad=grad)
    with _packed(call) as packed:
        error = native.library().two_class_gradient(
            packed, mean, scalars.data_ptr(), upstream.data_ptr(),
            upstream.stride(0) if upstream.dim() else 0, native.stream_of(p.logits),
        )  # fmt: skip
    native.check(error, f"two_class_gradient of {p.logits.shape[0]} rows")


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """Multiply the finished gradient by the upstream scalar, in place; 1 is seen on the device."""
    n, v = grad.shape
    if n == 0:
        return
    by = upstream.to(torch.float32)
    with native.device_of(grad):
        error = native.library().scale(
            grad.data_ptr(), grad.stride(0), n, v, DTYPE_CODES[grad.dtype], by.data_ptr(),
            native.stream_of(grad),
        )  # fmt: skip
    native.check(error, f"scale of {n} x {v}")


def _launch(kernel: str, call: RowCall) -> None:
    p = call.inputs
    n, v = p.logits.shape
    if n == 0:
        return
    with _packed(call) as packed:
        error = getattr(native.library(), kernel)(packed, native.stream_of(p.logits))
    native.check(error, f"{kernel} of {n} x {v} with {p.width} top-k classes")


@contextlib.contextmanager
def _packed(call: RowCall, threshold: float = -math.inf) -> Iterator[Any]:
    """Yield the C struct of a call, on the device of its logits; its threshold may be a number."""
    # Phase ``gradient`` reads these numbers from the record. Elsewhere a 0-d tensor stays on the
    # device and becomes fp32; it must live until the launch has returned.
    scalars: tuple[float | Tensor | None, ...] = (0.0, None, None)
    if call.row_scale is None:
        scalars = (call.spec.aux, call.threshold, call.scale)
    device = call.inputs.logits.device
    on_device = [x.to(device, torch.float32) if isinstance(x, Tensor) else None for x in scalars]
    addresses = [0 if x is None else x.data_ptr() for x in on_device]
    value = 0.0 if addresses[0] else float(call.spec.aux)
    with native.device_of(call.inputs.logits):
        yield call.packed(native.library().RowCall, value, threshold, 1.0, *addresses)
