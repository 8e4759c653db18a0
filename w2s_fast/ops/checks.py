"""Validate values before launch; on a GPU, assert asynchronously.

On the CPU the host checks and raises. On a GPU a check would make it wait, so the device asserts
later: no wait, one small kernel, and a failure ends the CUDA context with the message in its log.
``W2S_DEVICE_CHECKS=0`` skips the device's checks.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.transforms import values

_ON_DEVICE = os.environ.get("W2S_DEVICE_CHECKS", "1") != "0"


def on_host(x: Tensor) -> bool:
    """Return whether the host can look at the values of ``x`` without waiting for a device."""
    return x.device.type == "cpu"


def checks_on_device(x: Tensor | None) -> bool:
    """Return whether a kernel that reads ``x`` has to check its values."""
    return x is not None and _ON_DEVICE and not on_host(x)


def check_weight(weight: Tensor, by_kernel: bool = False) -> None:
    """Check that row weights (N,) are numbers >= 0.

    Args:
        weight: (N,).
        by_kernel: on a device, a backend of cross-entropies that is compiled for two classes checks
            the weights in the launch that reads them.

    Raises:
        W2SError: on the CPU, naming the first row that is not.
    """
    if _unknown(weight):
        return
    if by_kernel and not on_host(weight) and backend("cross_entropy", weight).LATE_TWO_CLASS:
        return
    weight = values(weight).flatten()  # under vmap, of every sample
    row = _first_wrong(weight >= 0, "a row weight is negative or NaN")
    if row is not None:
        raise W2SError(
            f"weight[{row}] is {float(weight[row])}; expected a number >= 0 (0 excludes the row)"
        )


def check_total(total: Tensor) -> None:
    """Raise ``W2SError`` on the CPU if the sum of the row weights, 0-d, is infinite.

    A mean over such rows would be 0, and so would its gradient.
    """
    if _unknown(total) or not on_host(total):
        return
    if bool(values(total.detach()).isinf().any()):
        raise total_error(total.dtype)


def total_error(dtype: torch.dtype) -> W2SError:
    """Return the error for row weights whose sum overflows ``dtype``."""
    return W2SError(
        f"weight sums to inf in {str(dtype).removeprefix('torch.')}; expected a finite sum of "
        "finite weights, divide them by their largest"
    )


def check_weight_dtype(weight: Tensor) -> None:
    """Raise ``W2SError`` for weights that are not real numbers."""
    if weight.dtype == torch.bool or weight.is_complex():
        raise W2SError(
            f"weight has dtype {weight.dtype}; expected numbers >= 0, for a mask weight.float()"
        )


def check_dense(name: str, x: Tensor) -> None:
    """Raise ``W2SError`` for a tensor of a sparse layout."""
    if x.layout is not torch.strided:
        raise W2SError(f"{name} has layout {x.layout}; expected a dense tensor, use .to_dense()")


def check_class_dtype(weak: Tensor, name: str = "weak") -> None:
    """Raise ``W2SError`` for hard labels that are not integers."""
    if weak.dtype == torch.bool or weak.is_complex():
        raise W2SError(
            f"{name} has dtype {weak.dtype}; expected class ids as integers ({name}.long())"
        )


def check_classes(weak: Tensor, v: int, ignore_index: int, name: str = "weak") -> None:
    """Check that hard labels (N,) are classes of V, or ``ignore_index``; on the CPU only.

    A device asserts nothing here: a loss in plain torch makes such rows NaN, as the kernels do.

    Raises:
        W2SError: naming the first label that is not.
    """
    check_class_dtype(weak, name)
    if _unknown(weak) or not on_host(weak):
        return
    weak = values(weak).flatten()
    row = _first_wrong(((weak >= 0) & (weak < v)) | (weak == ignore_index), "")
    if row is not None:
        raise class_error([int(weak[row])], row, v, ignore_index, name)


def class_error(
    label: list[int], row: int, v: int, ignore_index: int, name: str = "weak"
) -> W2SError:
    """Return the error for the hard label of ``row``."""
    return W2SError(
        f"{name} label {label} in row {row} is outside the classes; expected 0..{v - 1} or "
        f"ignore_index={ignore_index}"
    )


def check_coefficient(name: str, x: Tensor) -> None:
    """Raise ``W2SError`` unless ``x`` is 0-d and, on the CPU, in [0, 1]."""
    if x.dim():
        raise W2SError(f"{name} has shape {tuple(x.shape)}; expected a number or a 0-d tensor")
    if x.device.type != "cpu" or _unknown(x):
        return
    for value in values(x).detach().flatten().tolist():  # several under vmap
        if not 0.0 <= value <= 1.0:
            raise W2SError(f"{name} is {value}; expected a coefficient in [0, 1]")


def check_probs(probs: Tensor) -> None:
    """Check that soft labels (N, K) are numbers >= 0 whose sum is at most 1, to within 1 %.

    Raises:
        W2SError: on the CPU, naming the first row that is not.
    """
    if _unknown(probs) or not probs.numel():
        return
    probs = values(probs).flatten(0, -2)
    total = probs.sum(1, dtype=torch.promote_types(probs.dtype, torch.float32))
    row = _first_wrong((probs.amin(1) >= 0) & (total <= 1.01), "soft labels are no probabilities")
    if row is not None:
        raise W2SError(
            f"the soft labels of labelled position {row} sum to {float(total[row]):g}, the least "
            f"is {float(probs[row].min()):g}; expected probabilities, apply a softmax first"
        )


def _unknown(x: Tensor) -> bool:
    """Return whether ``x`` has no values to check yet."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor)


def _first_wrong(fine: Tensor, what: str) -> int | None:
    """Return the first row (N,) that is not fine on the CPU; elsewhere let the device assert it."""
    if not on_host(fine):
        if _ON_DEVICE:
            torch._assert_async(fine.all(), f"w2s_fast: {what}")
        return None
    return None if bool(fine.all()) else int((~fine).nonzero()[0])
