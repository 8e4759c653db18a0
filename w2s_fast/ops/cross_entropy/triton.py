"""Triton backend of the weak-to-strong cross-entropy: launches the row kernels, never syncs.

Same phases as the plain torch backend. One sweep with the gate open writes the gradient, possibly
over the logits; ``fixup`` then overwrites the few entries of the rows whose gate closes.
"""

from __future__ import annotations

import contextlib

import torch
import triton
from torch import Tensor

from w2s_fast.kernels import cross_entropy as kernels
from w2s_fast.ops.row_stats import Knobs
from w2s_fast.ops.targets import Problem, check_labels

FIXES_IN_PLACE = True


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
    A label outside the classes, or listed twice, turns its row's loss and gradient into NaN.
    """
    check_labels(p)
    n, v = p.logits.shape
    if n == 0:
        return
    aux = torch.as_tensor(knobs.aux, dtype=torch.float32, device=p.logits.device)
    with _on(p.logits):
        kernels.rows_kernel[(n,)](
            p.logits, p.logits.stride(0), grad, 0 if grad is None else grad.stride(0),
            p.ids, p.probs, _row_stride(p), p.rest, p.weight, aux, knobs.threshold, scale,
            stats, index, listed, n, v, _width(p), p.ignore_index,
            knobs.smoothing, knobs.gamma, knobs.cap, knobs.softcap, knobs.z_loss,
            KIND=kernels.KINDS[p.kind], RULE=kernels.RULES[knobs.rule],
            SMOOTH=knobs.smoothing != 0, FOCAL=knobs.gamma != 0,
            WINDOW=knobs.cap != float("inf"), CAP=knobs.softcap != 0, **_steps(p, grad),
            **_tiles(p, knobs),
        )  # fmt: skip


def fixup(
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor,
    listed: Tensor | None = None,
) -> None:
    """Close the gate of rows whose SCORE is below ``knobs.threshold``: record and gradient.

    ``grad`` holds what ``rows`` wrote for hard or sparse labels without a residual; every other
    call passes None and writes its gradient afterwards.
    """
    n, v = p.logits.shape
    if n == 0:
        return
    # A weak mass this close to 1 moves an entry by less than an eighth of a rounding.
    tolerance = torch.finfo(p.logits.dtype).eps / 8
    with _on(p.logits):
        kernels.fixup_kernel[(n,)](
            grad, 0 if grad is None else grad.stride(0), p.ids, p.probs, p.weight, p.rest,
            knobs.threshold, scale, stats, index, listed, n, v, _width(p), p.ignore_index,
            knobs.smoothing, knobs.softcap, knobs.z_loss, tolerance,
            KIND=kernels.KINDS[p.kind], SMOOTH=knobs.smoothing != 0, CAP=knobs.softcap != 0,
            **_tiles(p, knobs),
        )  # fmt: skip


def gradient(
    p: Problem, knobs: Knobs, stats: Tensor, index: Tensor, row_scale: Tensor, grad: Tensor
) -> None:
    """Write row_scale * dloss/dz (N, V) from the record; rows that do not count get exactly 0."""
    n, v = p.logits.shape
    if n == 0:
        return
    with _on(p.logits):
        kernels.gradient_kernel[(n,)](
            p.logits, p.logits.stride(0), grad, grad.stride(0), p.ids, p.probs, _row_stride(p),
            p.rest, row_scale, row_scale.stride(0), stats, index, n, v, _width(p),
            p.ignore_index, knobs.smoothing, knobs.softcap, knobs.z_loss,
            KIND=kernels.KINDS[p.kind], CAP=knobs.softcap != 0, **_steps(p, grad),
            **_tiles(p, knobs),
        )  # fmt: skip


def buffer_in_step(p: Problem) -> Tensor:
    """Uninitialised (N, V) whose rows cross 16-byte boundaries where those of the logits do.

    The gradient of a slice of padded rows is then written 16 bytes at a time, too.
    """
    z = p.logits
    (n, v), vec = z.shape, 16 // z.element_size()
    first = z.data_ptr() % 16 // z.element_size()
    stride = v + (z.stride(0) - v) % vec
    room = torch.empty(first + n * stride, dtype=z.dtype, device=z.device)
    return room[first:].view(n, stride)[:, :v]


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """Multiply the finished gradient by the upstream scalar, in place; 1 is seen on the device."""
    n, v = grad.shape
    if n == 0:
        return
    tile = kernels.tile(v, grad.element_size())
    with _on(grad):
        kernels.scale_kernel[(n, triton.cdiv(v, tile["REP"] * tile["LANES"] * tile["VEC"]))](
            grad, grad.stride(0), upstream, v, **tile
        )


def _width(p: Problem) -> int:
    return 0 if p.ids is None else p.ids.shape[1]


def _row_stride(p: Problem) -> int:
    return 0 if p.probs is None else p.probs.stride(0)


def _tiles(p: Problem, knobs: Knobs) -> dict[str, int]:
    tile = kernels.tile(p.logits.shape[1], p.logits.element_size(), knobs.softcap != 0)
    return {**tile, "KBLOCK": triton.next_power_of_2(max(1, _width(p)))}


def _steps(p: Problem, grad: Tensor | None) -> dict[str, bool]:
    """Which arrays cross 16-byte boundaries at the columns where the logits do, in every row.

    The others move one entry at a time: contiguous gradients of a registered operator, and dense
    labels, whose rows start elsewhere than the logits' rows.
    """
    dense = p.probs if p.kind == "dense" else None
    return {"G_STEP": _in_step(p.logits, grad), "Q_STEP": _in_step(p.logits, dense)}


def _in_step(z: Tensor, other: Tensor | None) -> bool:
    if other is None:
        return True
    # fp32 labels beside 16-bit logits: a vector of logits is two vectors of labels.
    size = other.element_size()
    first = other.data_ptr() - size // z.element_size() * z.data_ptr()
    return first % 16 == 0 and (other.stride(0) - z.stride(0)) * size % 16 == 0


def _on(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
