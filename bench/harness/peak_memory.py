"""Measure the peak memory of a call beyond its inputs, such as forward and backward of a head.

Every provider runs in a process of its own, forked from a server that has imported torch and little
else. The process makes the inputs, calls once so that libraries, compilers and primitives are
loaded, returns freed pages to the system, and measures how far the resident set of a second call
rises above the resident set before it: logits, gradients (including those of hidden and head), and
temporaries of every library. The C library's allocator is set to return freed buffers at once: by
default it learns to keep buffers below 32 MiB, and the peak would be that of its heap.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

_MIB = 1024.0
_LIMIT_S = 240.0
_RETURN_AT_ONCE = {-1: 2**17, -3: 2**17}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3), bytes

# Provider -> the call to measure, and a function that discards its results.
Prepare = Callable[[str], tuple[Callable[[], object], Callable[[], object]]]


def peaks(
    providers: Sequence[str], prepare: Prepare, threads: int, preload: Sequence[str]
) -> dict[str, float]:
    """Return provider -> peak MiB beyond the inputs, without providers that failed or timed out.

    Args:
        providers: Names that ``prepare`` accepts.
        prepare: Makes the inputs in the measured process; must be picklable.
        threads: Number of torch threads.
        preload: Modules that the server imports for all processes.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    peaks_mib = {}
    for provider in providers:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_measure, args=(sender, provider, prepare, threads))
        child.start()
        sender.close()
        with contextlib.suppress(EOFError):
            if receiver.poll(_LIMIT_S):
                peaks_mib[provider] = receiver.recv()
        if child.is_alive() and provider not in peaks_mib:
            child.kill()
        child.join()
    return peaks_mib


def _measure(out: Connection, provider: str, prepare: Prepare, threads: int) -> None:
    torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError):
        for option, value in _RETURN_AT_ONCE.items():
            ctypes.CDLL(None).mallopt(option, value)
    call, reset = prepare(provider)
    call()
    reset()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    call()
    out.send((_status("VmHWM") - before) / _MIB)


def _status(name: str) -> float:
    """Return a field of /proc/self/status in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    raise KeyError(name)
