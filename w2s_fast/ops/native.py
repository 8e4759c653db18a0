"""Load the compiled core, if it was built, and give it torch's thread pool.

The core does not depend on torch: it takes addresses, sizes and strides. It runs its loops through
``torch_parallel_for``, a C symbol of libtorch (torch >= 2.10), so there is no second thread pool
and ``torch.set_num_threads`` is honoured; without the symbol it runs on one thread.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

_HUGE_BYTES = 4 << 20


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        from w2s_fast import _core
    except ImportError as e:
        return None, _why_not_built() or f"{e}; install the package where there is a C++17 compiler"
    _core.set_parallel_for(*map(_symbol_of_torch, ("torch_parallel_for", "torch_get_num_threads")))
    return _core, ""


def _symbol_of_torch(name: str) -> int:
    """Return the address of a C function of libtorch; 0 if it has none of this name."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        symbol = getattr(ctypes.CDLL(str(library)), name)
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(symbol, ctypes.c_void_p).value or 0


def _why_not_built() -> str:
    """Return the note that a failed build wrote; see setup.py."""
    note = Path(__file__).resolve().parents[1] / "_core_missing.txt"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def missing() -> str:
    """Return why the compiled core cannot be used; an empty string if it can."""
    return _load()[1]


@functools.cache  # a loss of 32 rows takes microseconds
def core() -> ModuleType:
    """Return the compiled core.

    Raises:
        W2SError: if it was not built.
    """
    module, why = _load()
    if module is None:
        raise W2SError(f"the compiled core is missing: {why}")
    return module


def new_buffer(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor beside ``like``; ``dtype``: that of ``like`` unless given.

    On a CPU, huge pages cut the page faults of a large buffer by a factor of 512.
    """
    return _on_huge_pages(like.new_empty(shape, dtype=dtype))


def new_like(x: Tensor) -> Tensor:
    """Return an uninitialised tensor in shape and dtype of ``x``; see ``new_buffer``."""
    return _on_huge_pages(torch.empty_like(x))


def _on_huge_pages(buffer: Tensor) -> Tensor:
    if buffer.numel() < _HUGE_BYTES // 8:
        return buffer
    if buffer.nbytes >= _HUGE_BYTES and buffer.device.type == "cpu" and not missing():
        core().advise_huge(buffer.data_ptr(), buffer.nbytes)
    return buffer


def info() -> dict[str, str]:
    """Return what was built and chosen: ``isa`` and whether torch's thread pool is used."""
    if missing():
        return {"core": missing()}
    return {
        "core": "ok",
        "isa": core().isa(),
        "torch_pool": str(_symbol_of_torch("torch_parallel_for") != 0),
    }
