"""CUDA backend of the weak-to-strong cross-entropy: hands device addresses to csrc/cuda.

Same phases as the plain torch backend. A row stays in shared memory (of a cluster of blocks where
it is long), so it is read once and written once. Nothing waits for the device and nothing is
allocated by a launch: calls can be captured into a CUDA graph. A label outside the classes, or
listed twice, turns its row's loss and gradient into NaN.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops import native_cuda as native
from w2s_fast.ops.row_stats import Knobs
from w2s_fast.ops.targets import Problem, check_labels

FIXES_IN_PLACE = True
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
RULES = {"none": 0, "argmax": 1, "gate": 2, "margin": 3, "given": 4}


def rows(
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor,
    listed: Tensor | None = None,
) -> None:
    """Fill ``stats`` (12, N) and ``index`` (3, N); with ``grad`` (N, V) also scale * dloss/dz.

    ``grad`` may be the logits themselves. ``listed`` (N, K) fp32 receives z_id - M for ``fixup``.
    """
    check_labels(p)
    _launch("rows", p, knobs, stats, index, grad, scale, None, listed)


def fixup(
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor,
    listed: Tensor | None = None,
) -> None:
    """Close the gate of rows whose SCORE is below ``knobs.threshold``: record and gradient."""
    _launch("fixup", p, knobs, stats, index, grad, scale, None, listed)


def gradient(
    p: Problem, knobs: Knobs, stats: Tensor, index: Tensor, row_scale: Tensor, grad: Tensor
) -> None:
    """Write row_scale * dloss/dz (N, V) from the record; rows that do not count get exactly 0."""
    _launch("gradient", p, knobs, stats, index, grad, None, row_scale, None)


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """Multiply the finished gradient by the upstream scalar, in place; 1 is seen on the device."""
    n, v = grad.shape
    if n == 0:
        return
    by = upstream.to(torch.float32)
    with _on(grad):
        error = native.library().scale(
            grad.data_ptr(), grad.stride(0), n, v, DTYPES[grad.dtype], by.data_ptr(),
            native.stream_of(grad),
        )  # fmt: skip
    native.check(error, f"scale of {n} x {v}")


def _launch(
    kernel: str,
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    listed: Tensor | None,
) -> None:
    n, v = p.logits.shape
    if n == 0:
        return
    library = native.library()
    # The call holds addresses: what they point to must live until the launch has returned.
    aux, threshold = _scalar(knobs.aux, p), _scalar(knobs.threshold, p)
    call = _call(library, p, knobs, stats, index, grad, scale, row_scale, listed, aux, threshold)
    with _on(p.logits):
        error = getattr(library, kernel)(call, native.stream_of(p.logits))
    native.check(error, f"{kernel} of {n} x {v} with {_width(p)} listed classes")


def _call(
    library: Any,
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    listed: Tensor | None,
    aux: Tensor | None,
    threshold: Tensor | None,
) -> Any:
    n, v = p.logits.shape
    probs = p.probs
    return library.Call(
        n, v, _width(p), p.logits.data_ptr(), p.logits.stride(0), DTYPES[p.logits.dtype],
        _at(p.ids), _at(probs), _stride(probs), 0 if probs is None else DTYPES[probs.dtype],
        _at(p.rest), _at(p.weight), p.ignore_index, RULES[knobs.rule],
        0.0 if aux is not None else float(knobs.aux), _at(aux), _at(threshold),
        knobs.smoothing, knobs.gamma, knobs.cap, knobs.softcap, knobs.z_loss,
        _at(scale), _at(row_scale), _stride(row_scale), _at(stats), _at(index), _at(listed),
        _at(grad), _stride(grad),
    )  # fmt: skip


def _at(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _stride(t: Tensor | None) -> int:
    return 0 if t is None else t.stride(0)


def _width(p: Problem) -> int:
    return 0 if p.ids is None else p.ids.shape[1]


def _scalar(x: Tensor | float | None, p: Problem) -> Tensor | None:
    """A 0-d tensor stays on the device and becomes fp32; a number goes with the launch."""
    return x.to(p.logits.device, torch.float32) if isinstance(x, Tensor) else None


def _on(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Launches go to the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
