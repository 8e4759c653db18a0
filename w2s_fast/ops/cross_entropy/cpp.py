"""CPU backend of the weak-to-strong cross-entropy: hands addresses to the compiled core.

The kernels are in csrc/cpu/cross_entropy.h and csrc/cpu/two_class.h. Rows are independent and
summed in a fixed order, so results do not depend on the thread count.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops import native
from w2s_fast.ops.cross_entropy.algorithm import Request, record
from w2s_fast.ops.results import Solution
from w2s_fast.ops.row_stats import Knobs
from w2s_fast.ops.targets import Problem, check_labels

FIXES_IN_PLACE = True
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_RULES = {"none": 0, "argmax": 1, "gate": 2, "margin": 3, "given": 4}
_HUGE_BYTES = 4 << 20
_SELECTS = {"prior": 1, "median": 2}


def rows(
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor,
    listed: Tensor | None = None,
) -> None:
    """Fill the record and, with ``grad``, write the gradient; see the reference backend."""
    call = _call(p, knobs, stats, index, grad, float(scale), None, listed)
    _check(p, native.core().rows(call))


def fixup(
    p: Problem,
    knobs: Knobs,
    stats: Tensor,
    index: Tensor,
    grad: Tensor | None,
    scale: Tensor,
    listed: Tensor | None = None,
) -> None:
    """Close the gate of rows below ``knobs.threshold`` and overwrite what the open gate wrote."""
    call = _call(p, knobs, stats, index, grad, float(scale), None, listed)
    _check(p, native.core().fixup(call))


def gradient(
    p: Problem, knobs: Knobs, stats: Tensor, index: Tensor, row_scale: Tensor, grad: Tensor
) -> None:
    """Write row_scale * dloss/dz from the record."""
    row_scale = row_scale.contiguous()
    call = _call(p, knobs, stats, index, grad, 1.0, row_scale, None)
    _check(p, native.core().gradient(call))


def gradient_buffer(p: Problem) -> Tensor:
    """Uninitialised (N, V). Huge pages, where allowed, cut its page faults by a factor of 512."""
    grad = torch.empty(p.logits.shape, dtype=p.logits.dtype)
    if grad.nbytes >= _HUGE_BYTES:
        native.core().advise_huge(grad.data_ptr(), grad.nbytes)
    return grad


def scale_(grad: Tensor, upstream: Tensor) -> None:
    """Multiply the finished gradient by the upstream scalar, in place."""
    grad.mul_(upstream)


def two_class(p: Problem, r: Request, grad: Tensor | None, mean: bool) -> Solution:
    """Hard or dense weak labels over two classes: threshold, loss and gradient in one call."""
    stats = index = None
    if r.record:
        stats, index = record(p)
    total = torch.empty((), dtype=torch.float32)
    select = 0 if r.threshold is not None else _SELECTS.get(r.rule, 0)
    rule = "none" if r.rule == "none" else "margin"
    knobs = Knobs(rule, r.aux, r.threshold, r.smoothing, r.gamma, r.cap, r.softcap, r.z_loss)
    call = _call(p, knobs, stats, index, grad, 1.0, None, None)
    bad, count, at = native.core().two_class(call, select, mean, total.data_ptr())
    _check(p, bad)
    return Solution(stats, index, total, count, at if rule == "margin" else None, grad)


def _call(
    p: Problem,
    knobs: Knobs,
    stats: Tensor | None,
    index: Tensor | None,
    grad: Tensor | None,
    scale: float,
    row_scale: Tensor | None,
    listed: Tensor | None,
) -> Any:
    n, v = p.logits.shape
    probs = p.probs
    return native.core().CrossEntropy(
        n,
        v,
        0 if p.ids is None else p.ids.shape[1],
        p.logits.data_ptr(),
        p.logits.stride(0),
        _DTYPES[p.logits.dtype],
        0 if p.ids is None else p.ids.data_ptr(),
        0 if probs is None else probs.data_ptr(),
        0 if probs is None else probs.stride(0),
        0 if probs is None else _DTYPES[probs.dtype],
        0 if p.rest is None else p.rest.data_ptr(),
        0 if p.weight is None else p.weight.data_ptr(),
        p.ignore_index,
        _RULES[knobs.rule],
        float(knobs.aux),
        -math.inf if knobs.threshold is None else float(knobs.threshold),
        knobs.smoothing,
        knobs.gamma,
        knobs.cap,
        knobs.softcap,
        knobs.z_loss,
        scale,
        0 if row_scale is None else row_scale.data_ptr(),
        0 if stats is None else stats.data_ptr(),
        0 if index is None else index.data_ptr(),
        0 if listed is None else listed.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        0 if grad is None else grad.stride(0),
    )


def _check(p: Problem, bad: int) -> None:
    """The kernel looks at the labels while it reads them, and returns a row it could not serve."""
    if bad >= 0:
        check_labels(p)  # the first such row, whichever thread met one first
