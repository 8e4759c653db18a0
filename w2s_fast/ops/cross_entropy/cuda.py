"""CUDA backend of the weak-to-strong cross-entropy: passes device addresses to csrc/cuda.

Same phases as the plain torch backend. A row stays in shared memory (of a cluster of blocks where
it is long), so it is read once and written once. Nothing waits for the device and nothing is
allocated by a launch: calls can be captured into a CUDA graph. A label outside the classes, or
listed twice, turns its row's loss and gradient into NaN.
"""

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor

from w2s_fast.ops import native_cuda as native
from w2s_fast.ops.cross_entropy.ref import gradient_buffer as gradient_buffer
from w2s_fast.ops.dtypes import DTYPE_CODES
from w2s_fast.ops.loss_call import RowCall
from w2s_fast.ops.targets import check_labels

FIXES_IN_PLACE = True
READS_TARGET_LOGITS = False
# The rows of a fused head whose softmax factor changes late are a Triton kernel.
FIXES_ANY_MASS = importlib.util.find_spec("triton") is not None


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
    p, library = call.inputs, native.library()
    n, v = p.logits.shape
    if n == 0:
        return
    # Phase ``gradient`` reads these numbers from the record. Elsewhere a 0-d tensor stays on the
    # device and becomes fp32; it must live until the launch has returned.
    scalars: tuple[float | Tensor | None, ...] = (0.0, None, None)
    if call.row_scale is None:
        scalars = (call.spec.aux, call.threshold, call.scale)
    on_device = [
        x.to(p.logits.device, torch.float32) if isinstance(x, Tensor) else None for x in scalars
    ]
    addresses = [0 if x is None else x.data_ptr() for x in on_device]
    value = 0.0 if addresses[0] else float(call.spec.aux)
    packed = call.packed(library.RowCall, value, -math.inf, 1.0, *addresses)
    with native.device_of(p.logits):
        error = getattr(library, kernel)(packed, native.stream_of(p.logits))
    native.check(error, f"{kernel} of {n} x {v} with {p.width} top-k classes")
