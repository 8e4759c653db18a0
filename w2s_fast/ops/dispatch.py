"""The one table of ops and backends, and how the backend of a call is chosen.

An op is a folder. ``api`` holds the formula and the public functions, ``algorithm`` what all
backends share, ``autograd`` the eager derivative, ``operators`` the registered operators; ``ref``,
``cpp``, ``triton`` and ``cuda`` are the backends. A backend is a module that only fills buffers, so
backends can be swapped and compared. Every op calls ``backend(op, like)`` and then the functions of
that module.

The choice is by device (cpu: cpp > ref; cuda: cuda > triton > ref) unless ``W2S_BACKEND`` or
``use_backend`` forces one; a forced backend that is missing raises; an automatic fallback warns
once, but not for CUDA kernels that were never built. fp64 always uses the reference, so a gradient
check tests the formula itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.ops import native, native_cuda

BACKENDS = ("ref", "cpp", "triton", "cuda")
# On a GPU the order is to follow predicted times (docs/machine_model.md) until rows are measured;
# tests/kernels/test_compile_cuda.py compares them, and names the kernels for which it does not yet.
PREFERRED = {"cpu": ("cpp", "ref"), "cuda": ("cuda", "triton", "ref")}
ISAS = ("base", "avx2", "avx512")  # of the compiled core: csrc/cpu/run.cpp
_forced: str | None = os.environ.get("W2S_BACKEND") or None

LIBRARY = torch.library.Library("w2s_fast", "DEF")


def _in_folder(op: str) -> dict[str, str]:
    return {name: f"{__package__}.{op}.{name}" for name in BACKENDS}


# Op -> backend -> module. Top-k log-probabilities run on the row kernels of the cross-entropy.
MODULES: dict[str, Mapping[str, str]] = {
    "cross_entropy": _in_folder("cross_entropy"),
    "topk_logprob": _in_folder("cross_entropy"),
    "quantile": _in_folder("quantile"),
    "balanced": {
        name: f"{__package__}.balanced.{'cpp' if name == 'cpp' else 'ref'}" for name in BACKENDS
    },
    "info_nce": _in_folder("info_nce"),
    "votes": {name: f"{__package__}.votes.{name}" for name in ("ref", "cpp")},
}

# A loss of 32 rows takes microseconds: backends are looked up once.
_resolved: dict[tuple[str, torch.device, str | None], ModuleType] = {}
_HOST = torch.device("cpu")


def backend(op: str, like: Tensor) -> Any:
    """Return the module that serves ``op`` for tensors of this device and dtype.

    Raises:
        W2SError: if a forced backend is missing here.
    """
    name, device = "ref" if like.dtype == torch.float64 else _forced, like.device
    key = (op, device, name)
    module = _resolved.get(key)
    if module is None:
        module = _resolved[key] = _resolve(op, device.type, name)
    return module


def host_backend(op: str) -> Any:
    """Return the module that serves ``op`` for host memory, also where a GPU's backend is forced.

    Raises:
        W2SError: if the compiled core is forced and missing here.
    """
    name = _forced if _forced in ("ref", "cpp") else None
    key = (op, _HOST, name)
    module = _resolved.get(key)
    if module is None:
        module = _resolved[key] = _resolve(op, "cpu", name)
    return module


def served_ops() -> dict[str, list[str]]:
    """Return op -> the backends that served it in this process since ``forget_served_ops``."""
    served: dict[str, set[str]] = {}
    for (op, _, _), module in _resolved.items():
        served.setdefault(op, set()).add(module.__name__.rpartition(".")[2])
    return {op: sorted(names) for op, names in sorted(served.items())}


def forget_served_ops() -> None:
    """Start a new list for ``served_ops``; the next call of each op looks its backend up again."""
    _resolved.clear()


def _resolve(op: str, device: str, name: str | None) -> ModuleType:
    name = name or _automatic(device)
    check_backend(name)
    _check_device(name, device)
    return importlib.import_module(MODULES[op][name])


@dataclass(frozen=True)
class Cost:
    """Least memory traffic and arithmetic of one call, for roofline ratios."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Op:
    """What tests and benchmarks need to drive an op.

    Attributes:
        name: key of ``MODULES``.
        reference: plain torch function, the truth in fp64.
        sample: ``(n, v, dtype, device, seed) -> kwargs`` of a call with invariants broken on
            purpose (unnormalised targets, masked rows, ties, large logits).
        cost: ``(n, v, dtype) -> Cost`` of forward and backward together.
    """

    name: str
    reference: Callable[..., Any]
    sample: Callable[..., dict[str, Any]]
    cost: Callable[..., Cost]


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force one backend inside a ``with`` block (None: choose by device again).

    Raises:
        W2SError: if the name is unknown or the backend is missing on this machine.
    """
    global _forced
    before = _forced
    if name is not None:
        check_backend(name)
    _forced = name
    try:
        yield
    finally:
        _forced = before


def check_environment(env: Mapping[str, str] = os.environ) -> None:
    """Raise ``W2SError`` for a backend or an instruction set that the environment misnames."""
    if name := env.get("W2S_BACKEND"):
        try:
            check_backend(name)
        except W2SError as e:
            raise W2SError(f"W2S_BACKEND={name!r}: {e}") from e
    isa = env.get("W2S_CPU_CAPABILITY")
    if isa and isa not in ISAS:
        raise W2SError(f"W2S_CPU_CAPABILITY={isa!r}: expected one of {', '.join(ISAS)}")


def check_backend(name: str) -> None:
    """Raise ``W2SError`` with the reason if backend ``name`` cannot be used."""
    if name not in BACKENDS:
        raise W2SError(
            f"unknown backend {name!r}; expected one of {BACKENDS}{nearest(name, BACKENDS)}"
        )
    why = missing(name)
    if why:
        raise W2SError(f"backend {name!r} was requested but is missing: {why}")


def missing(name: str) -> str:
    """Return why a backend cannot be used; an empty string if it can."""
    if name == "cpp":
        return native.missing()
    if name == "cuda":
        return native_cuda.missing()
    if name == "triton":
        try:
            importlib.import_module("triton")
        except ImportError as e:
            return f"{e} (pip install triton)"
    return ""


def backends_info() -> dict[str, str]:
    """Return backend name -> ``"ok"`` or the reason it is missing; ``doctor`` prints it."""
    return {name: missing(name) or "ok" for name in BACKENDS}


def _check_device(name: str, device: str) -> None:
    # The core would read device addresses as host addresses; Triton would look for a driver.
    if name == "cpp" and device != "cpu":
        raise W2SError(f"backend 'cpp' serves cpu tensors, these are on {device}; force another")
    cuda_device = "cpu" if native_cuda.emulated() else "cuda"
    if name == "cuda" and device != cuda_device:
        raise W2SError(
            f"backend 'cuda' serves {cuda_device} tensors here, these are on {device}; "
            "force another"
        )
    if name == "triton" and device == "cpu" and not interpreted():
        raise W2SError(
            "backend 'triton' serves cpu tensors only in its interpreter; set TRITON_INTERPRET=1 "
            "before the program starts"
        )


def interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _automatic(device: str) -> str:
    candidates = PREFERRED.get(device, ("ref",))
    for name in candidates:
        why = missing(name)
        if not why:
            return name
        if name == "cuda" and not native_cuda.built():
            continue  # a machine without nvcc uses Triton: no reason to warn
        warnings.warn(f"w2s_fast: backend {name!r} is missing ({why}); falling back", stacklevel=4)
    raise W2SError(f"no backend serves device {device!r}; tried {candidates}")
