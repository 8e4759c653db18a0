"""Load the CUDA kernels, if they were built, and report why they cannot run on this machine.

Like the compiled core they do not depend on torch: addresses, sizes, strides and the stream are
integers, a ``cudaError_t`` is returned. The library loads without a driver; whether it can run
is tested on the device.

``W2S_CUDA_EMULATE=1``, set before the program starts, loads the same kernels compiled for the host
instead (a test build, ``csrc/cuda/emulate.h``). They serve CPU tensors, slowly and on one thread.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

# Not by its name: a package for the Hub's kernel loader has another.
_PARENT = str(__package__).rpartition(".")[0]
_TOO_OLD = 35  # cudaErrorInsufficientDriver
_NO_CODE = (98, 209)  # cudaErrorInvalidDeviceFunction, cudaErrorNoKernelImageForDevice


def emulated() -> bool:
    """Return whether the emulation on the host replaces a device."""
    return os.environ.get("W2S_CUDA_EMULATE", "0") == "1"


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    name = "_cuda_emulated" if emulated() else "_cuda"
    try:
        return importlib.import_module(f"{_PARENT}.{name}"), ""
    except ModuleNotFoundError:
        how = "W2S_BUILD_EMULATION=1" if emulated() else "nvcc and W2S_CUDA=1"
        return None, f"{name} was not built; install the package with {how}"
    except ImportError as e:
        return None, str(e)


def built() -> bool:
    """Return whether the library was built, usable or not."""
    return _load()[0] is not None


@functools.cache
def missing() -> str:
    """Return why the CUDA kernels cannot be used; an empty string if they can."""
    module, why = _load()
    if module is None:
        return why
    if emulated():
        return ""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return _reason(module, module.probe(torch.cuda.current_device()))


def _reason(module: ModuleType, error: int) -> str:
    if error == 0:
        return ""
    reason = module.error_string(error)
    if error == _TOO_OLD:
        version = module.runtime_version()
        return (
            f"{reason}: built with CUDA {version // 1000}.{version % 1000 // 10}; update the driver"
        )
    if error in _NO_CODE:
        return f"{reason}: rebuild the package on this machine with W2S_CUDA=1"
    return f"CUDA error {error}, {reason}"


def library() -> ModuleType:
    """Return the loaded library.

    Raises:
        W2SError: if it was not built.
    """
    module, why = _load()
    if module is None:
        raise W2SError(f"the CUDA kernels are missing: {why}")
    return module


def device_of(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Launch on the device of ``x``, which need not be the current one; Triton needs it as well."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def stream_of(x: Tensor) -> int:
    """Return the current stream of a tensor's device, as an integer."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def check(error: int, what: str) -> None:
    """Raise ``W2SError`` for the ``cudaError_t`` of a launch. ``what`` names kernel and sizes.

    A launch reports its own errors: sizes, driver, code. Errors of running kernels come later.
    """
    if error:
        raise W2SError(f"CUDA kernel {what} was not launched: {_reason(library(), error)}")


def info() -> dict[str, str]:
    """Return the version of the linked CUDA runtime; empty if nothing was built."""
    module, _ = _load()
    if module is None or emulated():
        return {}
    version = module.runtime_version()
    return {"cuda runtime": f"{version // 1000}.{version % 1000 // 10}"}
