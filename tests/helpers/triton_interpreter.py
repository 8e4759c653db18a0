"""Triton's interpreter rounds as a GPU does, and calls device functions at less cost.

fp32 becomes bfloat16 by rounding, instead of by cutting digits off, and a fused multiply-add rounds
once, instead of twice. The interpreter replaces the language by interpreted operations again in
every call of a device function, and checks overflows by dozens of interpreted operations; both are
done here once a function, and by numpy. What an operation comes to is worked out once for each
combination of types, by ``triton_replay``.

Importing this module is enough, before or after the kernels are imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

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


def fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x y + z of fp32 numbers: in fp64 the product is exact."""
    exact = np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((exact(x) * exact(y) + exact(z)).astype(np.float32))


def _fma(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def created(self: Any, x: Any, y: Any, z: Any) -> Any:
        if x.data.dtype != np.float32:
            return create(self, x, y, z)
        return _triton.TensorHandle(fused(x.data, y.data, z.data), z.dtype.scalar)

    return created


def _by_name(numpy_dtype: Callable[..., np.dtype]) -> Callable[..., np.dtype]:
    known: dict[str, np.dtype] = {}  # the interpreter makes the whole table in every call

    def found(triton_dtype: Any) -> np.dtype:
        name = triton_dtype.scalar.name
        if name not in known:
            known[name] = numpy_dtype(triton_dtype)
        return known[name]

    return found


_INTEGER = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _check_overflow(self: Any, left: Any, right: Any, operation: Callable[..., Any]) -> None:
    """The interpreter's check of an integer operation, without dozens of interpreted ones."""
    if left.type.scalar.int_bitwidth < 64 and self.builder.options.sanitize_overflow:
        self.builder.check_overflow(left.handle, right.handle, operation.__name__)


def _exact(self: Any, left: Any, right: Any, name: str) -> None:
    kind = left.dtype.scalar
    bits = kind.int_bitwidth
    exact = _INTEGER[name](left.data.astype(np.int64), right.data.astype(np.int64))
    least, most = kind.get_int_min_value(), kind.get_int_max_value()
    assert ((exact >= least) & (exact <= most)).all(), f"int{bits} overflow detected in {name}"


_called: set[Any] = set()


def _call_device_function(self: Any, *args: Any, **kwargs: Any) -> Any:
    if self not in _called:
        _triton._patch_lang(self.fn)  # of what the launch itself does not see: never undone
        _called.add(self)
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as e:
        raise _triton.InterpreterError(repr(e)) from e


def _replay_operations() -> None:
    from helpers.triton_replay import Replay

    replay = Replay(_triton.interpreter_semantic)
    patch_tensor = _triton._patch_lang_tensor

    def patched(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        scope.set_attr(owner, name, replay.wrapped(member))

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        for name in ("__bool__", "__index__"):
            ask = getattr(tensor, name)
            scope.set_attr(tensor, name, lambda self, ask=ask: replay.looked(ask(self)))

    _triton._patch_attr, _triton._patch_lang_tensor = patched, patched_tensor


if _triton is not None:
    _replay_operations()
    _triton._get_np_dtype = _by_name(_triton._get_np_dtype)
    _triton.TritonSemantic.binary_op_sanitize_overflow_impl = _check_overflow
    _triton.InterpreterBuilder.check_overflow = _exact
    _triton.InterpretedFunction.__call__ = _call_device_function
    _triton._convert_float = _mended(_triton._convert_float)
    _triton.InterpreterBuilder.create_fma = _fma(_triton.InterpreterBuilder.create_fma)
