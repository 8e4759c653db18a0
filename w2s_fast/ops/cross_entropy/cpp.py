"""CPU backend of the weak-to-strong cross-entropy: passes addresses to the compiled core.

The kernels are in csrc/cpu/cross_entropy.h and csrc/cpu/two_class.h. Rows are independent and
summed in a fixed order, so results do not depend on the thread count.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops import native
from w2s_fast.ops.checks import total_error
from w2s_fast.ops.dtypes import DTYPE_CODES
from w2s_fast.ops.loss_call import LossResult, LossSpec, RowCall, RowRule, new_record
from w2s_fast.ops.targets import LossInputs, check_labels

FIXES_IN_PLACE = True
GUESSES_GATES = True  # the host may look at scores and choose rows
READS_TARGET_LOGITS = True
FIXES_ANY_MASS = False
LATE_TWO_CLASS = False
SUMS_TWO_CLASS = True
_NO_RECORD = (torch.empty(0), torch.empty(0, dtype=torch.int64))  # data_ptr() is 0
# Copied in form: faster than to name the form.
_SCALAR, _SUMS = torch.empty((), dtype=torch.float32), torch.empty(4, dtype=torch.float32)


def rows(call: RowCall) -> None:
    """Fill the record and, with ``grad``, write the gradient; see the reference backend."""
    _check(call.inputs, native.core().rows(_packed(call)))


def fixup(call: RowCall) -> None:
    """Close the gate of rows below the threshold and overwrite what the open gate wrote."""
    native.core().fixup(_packed(call))


def gradient(call: RowCall) -> None:
    """Write row_scale * dloss/dz from the record."""
    native.core().gradient(_packed(call))


def gradient_buffer(p: LossInputs, any_stride: bool = False) -> Tensor:
    """Return an uninitialised (N, V)."""
    return native.new_like(p.logits)


def takes_two_class(p: LossInputs, spec: LossSpec) -> bool:
    """Return whether ``two_class`` has every term of a call with hard or dense labels."""
    return not (spec.softcap or spec.z_loss)


def two_class(p: LossInputs, spec: LossSpec, grad: Tensor | None, mean: bool) -> LossResult:
    """Compute threshold, loss and gradient of hard or dense labels over two classes in one call."""
    stats, index = new_record(p) if spec.record else _NO_RECORD
    rule, given = spec.row_rule(2), spec.threshold
    logits, ids, probs, _, weight, ignore_index, _ = p
    loss = torch.empty_like(_SCALAR)
    sums = torch.empty_like(_SUMS) if spec.sums else None
    # One call of numbers, and no ``RowCall``: a loss of 32 rows takes microseconds.
    bad, count, at = native.core().two_class(
        logits.shape[0], logits.data_ptr(), logits.stride(0), DTYPE_CODES[logits.dtype],
        0 if ids is None else ids.data_ptr(),
        0 if probs is None else probs.data_ptr(),
        0 if probs is None else probs.stride(0),
        0 if probs is None else DTYPE_CODES[probs.dtype],
        0 if weight is None else weight.data_ptr(),
        ignore_index, rule, spec.threshold_from(), float(spec.aux),
        0.0 if given is None else float(given),
        spec.smoothing, spec.focal_gamma, spec.max_confidence, mean,
        stats.data_ptr(), index.data_ptr(), 0 if sums is None else sums.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        0 if grad is None else grad.stride(0), loss.data_ptr(),
    )  # fmt: skip
    _check(p, bad)
    if mean and count == math.inf:
        raise total_error(p.accumulator)
    threshold = at if rule is RowRule.MARGIN else None
    return LossResult(stats, index, loss, count, threshold, (grad,), sums=sums)


def _packed(call: RowCall) -> Any:
    at, scale = call.threshold, call.scale
    return call.packed(
        native.core().RowCall,
        float(call.spec.aux),
        -math.inf if at is None else float(at),
        1.0 if scale is None else float(scale),
    )


def _check(p: LossInputs, bad: int) -> None:
    """Raise for a bad label; the kernel checks labels as it reads them and returns a bad row."""
    if bad >= 0:
        check_labels(p)  # the first such row, whichever thread met one first
