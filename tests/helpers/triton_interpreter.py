"""Triton's interpreter rounds fp32 to bfloat16 as a GPU does, instead of cutting digits off.

Importing this module is enough, before or after the kernels are imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

try:
    from triton.runtime import interpreter as _triton
except ImportError:  # no triton on this system: nothing to mend
    _triton = None

_NAN = 0x7FFF  # what the hardware makes of a NaN of any payload


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits (uint16) of fp32 numbers rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.asarray(np.where(nan, _NAN, rounded).astype(np.uint16).reshape(np.shape(x)))


def _mended(convert: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    @functools.wraps(convert)
    def converted(
        x: np.ndarray, from_dtype: object, to_dtype: object, rounding: object
    ) -> np.ndarray:
        if str(from_dtype) == "fp32" and str(to_dtype) == "bf16":
            return to_bfloat16(x)
        return convert(x, from_dtype, to_dtype, rounding)

    return converted


if _triton is not None:
    _triton._convert_float = _mended(_triton._convert_float)
