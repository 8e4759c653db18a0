"""Triton backend of the weak-to-strong cross-entropy: launches the row kernels, never syncs.

Same phases as the plain torch backend. One pass with the gate open writes the gradient, possibly
over the logits; ``fixup`` then overwrites the few entries of the rows whose gate closes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from w2s_fast.kernels import _tile
from w2s_fast.kernels import cross_entropy as kernels
from w2s_fast.kernels import two_class as pairs
from w2s_fast.kernels import two_class_grid as grid
from w2s_fast.ops.checks import checks_on_device
from w2s_fast.ops.loss_call import (
    LossResult,
    LossSpec,
    RowCall,
    RowRule,
    ThresholdFrom,
    empty_record,
)
from w2s_fast.ops.native_cuda import device_of
from w2s_fast.ops.targets import LossInputs, check_labels

FIXES_IN_PLACE = True
GUESSES_GATES = False
READS_TARGET_LOGITS = False
FIXES_ANY_MASS = True
LATE_TWO_CLASS = True
SUMS_TWO_CLASS = False


def rows(call: RowCall) -> None:
    """Fill the record and, with ``grad``, write the gradient; see the reference backend.

    A label outside the classes, or listed twice, turns its row's loss and gradient into NaN.
    """
    p, spec, grad = call.inputs, call.spec, call.grad
    check_labels(p)
    n, v = p.logits.shape
    if n == 0:
        return
    aux = torch.as_tensor(spec.aux, dtype=torch.float32, device=p.logits.device)
    with device_of(p.logits):
        kernels.rows_kernel[(n,)](
            p.logits, p.logits.stride(0), grad, 0 if grad is None else grad.stride(0),
            p.ids, p.probs, _row_stride(p), p.rest, p.weight, aux, call.threshold, call.scale,
            call.stats, call.index, call.topk_diffs, n, v, p.width, p.ignore_index,
            spec.smoothing, spec.focal_gamma, spec.max_confidence, spec.softcap, spec.z_loss,
            KIND=kernels.KINDS[p.kind], RULE=int(call.rule),
            SMOOTH=spec.smoothing != 0, FOCAL=spec.focal_gamma != 0,
            WINDOW=spec.max_confidence != float("inf"), ENTROPY=spec.entropy,
            CAP=spec.softcap != 0, **_steps(p, grad), **_tiles(call),
            **_tile.registers(p.logits.element_size(), p.kind, spec.softcap != 0),
        )  # fmt: skip


def fixup(call: RowCall) -> None:
    """Close the gate of rows whose SCORE is below the threshold: record and gradient.

    ``grad`` holds what ``rows`` wrote for hard or sparse labels without a residual; every other
    call passes None and writes its gradient afterwards.
    """
    p, spec, grad = call.inputs, call.spec, call.grad
    n, v = p.logits.shape
    if n == 0:
        return
    # A weak mass this close to 1 moves an entry by less than an eighth of a rounding.
    tolerance = torch.finfo(p.logits.dtype).eps / 8
    with device_of(p.logits):
        kernels.fixup_kernel[(n,)](
            grad, 0 if grad is None else grad.stride(0), p.ids, p.probs, p.weight, p.rest,
            call.threshold, call.scale, call.stats, call.index, call.topk_diffs, n, v, p.width,
            p.ignore_index, spec.smoothing, spec.softcap, spec.z_loss, tolerance,
            KIND=kernels.KINDS[p.kind], SMOOTH=spec.smoothing != 0, CAP=spec.softcap != 0,
            **_tiles(call),
        )  # fmt: skip


def gradient(call: RowCall) -> None:
    """Write row_scale * dloss/dz (N, V) from the record; rows that do not count get exactly 0."""
    p, spec, grad, row_scale = call.inputs, call.spec, call.grad, call.row_scale
    assert grad is not None and row_scale is not None
    n, v = p.logits.shape
    if n == 0:
        return
    with device_of(p.logits):
        kernels.gradient_kernel[(n,)](
            p.logits, p.logits.stride(0), grad, grad.stride(0), p.ids, p.probs, _row_stride(p),
            p.rest, row_scale, row_scale.stride(0), call.stats, call.index, n, v, p.width,
            p.ignore_index, spec.smoothing, spec.softcap, spec.z_loss,
            KIND=kernels.KINDS[p.kind], SMOOTH=spec.smoothing != 0, CAP=spec.softcap != 0,
            **_steps(p, grad), **_tiles(call),
        )  # fmt: skip


def takes_two_class(p: LossInputs, spec: LossSpec) -> bool:
    """Return whether ``two_class`` serves a call with hard or dense labels; counters are 32-bit."""
    return p.logits.shape[0] < 2**31


def two_class(
    p: LossInputs, spec: LossSpec, grad: Tensor | None, mean: bool, losses: Tensor | None = None
) -> LossResult:
    """Compute threshold, normaliser, loss and gradient of two classes; ``losses`` (N,) on request.

    One launch. From 2049 rows on several programs share the batch: their counters start at zero,
    which is a launch of its own.
    """
    check_labels(p)
    n, device = p.logits.shape[0], p.logits.device
    stats, index = empty_record(p, spec.record)
    out = torch.empty(3, dtype=torch.float32, device=device)
    at, number = spec.threshold_and_number()
    cut = 0.0 if number is None else number
    arrays = (at, stats if spec.record else None, index if spec.record else None, losses, out)
    check = checks_on_device(p.weight)
    terms = _pair_modes(p, spec)
    modes = terms | {"FROM": int(spec.threshold_from()), "MEAN": mean}
    modes |= {"CHECK": check, "debug": check, "sanitize_overflow": False}
    with device_of(p.logits):
        if n <= pairs.MOST_ROWS:
            block = next(b for b in pairs.BLOCKS if n <= b)
            pairs.two_class_kernel[(1,)](
                *_pair_arrays(p, spec, grad), *arrays, n, cut, *_pair_terms(p, spec),
                **modes, BLOCK=block, num_warps=pairs.BLOCKS[block],
            )  # fmt: skip
        else:
            words = torch.zeros(grid.SIZE, dtype=torch.int64, device=device)
            sums = torch.empty(grid.SUMS, dtype=torch.float64, device=device)
            selects = spec.threshold_from() is not ThresholdFrom.GIVEN
            programs, *sizes = grid.layout(n, selects)
            plain = not (spec.record or any(terms[m] for m in ("SMOOTH", "FOCAL", "WINDOW", "CAP")))
            grid.two_class_grid_kernel[(programs,)](
                *_pair_arrays(p, spec, grad), *arrays, words, sums, n, *sizes, cut,
                *_pair_terms(p, spec), **modes, BLOCK=grid.TILE, num_warps=grid.WARPS,
                **grid.registers(plain),
            )  # fmt: skip
    loss, count, at = out.unbind()
    rule = spec.row_rule(2)
    return LossResult(
        stats, index, loss, count, at if rule is RowRule.MARGIN else None, (grad,), scalars=out
    )


def two_class_gradient(
    p: LossInputs, spec: LossSpec, scalars: Tensor, upstream: Tensor, mean: bool, grad: Tensor
) -> None:
    """Write the gradient of a finished ``two_class``, times the 0-d or (N,) upstream: one launch.

    ``scalars`` are those of its result.
    """
    n = p.logits.shape[0]
    if n == 0:
        return
    with device_of(p.logits):
        pairs.two_class_gradient_kernel[(triton.cdiv(n, pairs.ROWS),)](
            *_pair_arrays(p, spec, grad), scalars, upstream, upstream.stride(0) if upstream.dim()
            else 0, n, *_pair_terms(p, spec), **_pair_modes(p, spec), MEAN=mean, BLOCK=pairs.ROWS,
            num_warps=pairs.WARPS,
        )  # fmt: skip


def _pair_arrays(p: LossInputs, spec: LossSpec, grad: Tensor | None) -> tuple[Any, ...]:
    aux = spec.aux.float() if isinstance(spec.aux, Tensor) else None
    return (
        p.logits, p.logits.stride(0), grad, 0 if grad is None else grad.stride(0),
        p.ids, p.probs, _row_stride(p), p.weight, aux,
    )  # fmt: skip


def _pair_terms(p: LossInputs, spec: LossSpec) -> tuple[int | float, ...]:
    aux = 0.0 if isinstance(spec.aux, Tensor) else float(spec.aux)
    return (
        p.ignore_index, aux, spec.smoothing, spec.focal_gamma, spec.max_confidence, spec.softcap,
        spec.z_loss,
    )  # fmt: skip


def _pair_modes(p: LossInputs, spec: LossSpec) -> dict[str, Any]:
    return {
        "KIND": kernels.KINDS[p.kind], "OWN": spec.row_rule(2) is RowRule.MARGIN,
        "SMOOTH": spec.smoothing != 0, "FOCAL": spec.focal_gamma != 0,
        "WINDOW": spec.max_confidence != float("inf"), "CAP": spec.softcap != 0,
    }  # fmt: skip


def gradient_buffer(p: LossInputs, any_stride: bool = False) -> Tensor:
    """Return an uninitialised (N, V) for the gradient; contiguous unless ``any_stride``.

    With ``any_stride`` its rows cross 16-byte boundaries where those of the logits do: the gradient
    of a slice of padded rows is then written 16 bytes at a time, too.
    """
    z = p.logits
    if not any_stride:
        return torch.empty(z.shape, dtype=z.dtype, device=z.device)
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
    tile = _tile.tile(v, grad.element_size())
    with device_of(grad):
        kernels.scale_kernel[(n, triton.cdiv(v, tile["REP"] * tile["LANES"] * tile["VEC"]))](
            grad, grad.stride(0), upstream, v, **tile
        )


def _row_stride(p: LossInputs) -> int:
    return 0 if p.probs is None else p.probs.stride(0)


def _tiles(call: RowCall) -> dict[str, int]:
    p = call.inputs
    tile = _tile.tile(p.logits.shape[1], p.logits.element_size(), call.spec.softcap != 0)
    return {**tile, "KBLOCK": triton.next_power_of_2(max(1, p.width))}


def _steps(p: LossInputs, grad: Tensor | None) -> dict[str, bool]:
    """Return which arrays cross 16-byte boundaries at the columns of the logits, in every row.

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
