"""Peak memory of a call, forward and backward of a fused head for instance, beyond its inputs.

Every provider gets a process of its own, forked from a server that has imported torch and little
else. It makes the inputs, makes one call so that libraries, compilers and primitives are loaded,
gives freed pages back, and then reads how far the resident set of a second call rises above the
resident set before it: logits, gradients (those of hidden and head among them), temporaries of
every library. The C library's allocator is told to give freed buffers back at once: by default it
learns to keep those below 32 MiB, and the peak would be that of its heap.
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
_AT_ONCE = {-1: 2**17, -3: 2**17}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3), bytes

# Provider -> the call to measure, and what takes its results away before the second one.
Prepare = Callable[[str], tuple[Callable[[], object], Callable[[], object]]]


def peaks(
    providers: Sequence[str], prepare: Prepare, threads: int, preload: Sequence[str]
) -> dict[str, float]:
    """Provider -> peak MiB over inputs; without those whose process failed or took too long.

    Args:
        providers: names that ``prepare`` knows.
        prepare: makes the inputs in the process that is measured; pickled to get there.
        threads: of torch.
        preload: modules that the server imports for all of them.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    found = {}
    for provider in providers:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_measure, args=(theirs, provider, prepare, threads))
        child.start()
        theirs.close()
        with contextlib.suppress(EOFError):
            if ours.poll(_LIMIT_S):
                found[provider] = ours.recv()
        if child.is_alive() and provider not in found:
            child.kill()
        child.join()
    return found


def _measure(out: Connection, provider: str, prepare: Prepare, threads: int) -> None:
    torch.set_num_threads(threads)
    with contextlib.suppress(OSError, AttributeError):
        for option, value in _AT_ONCE.items():
            ctypes.CDLL(None).mallopt(option, value)
    call, reset = prepare(provider)
    call()
    reset()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    call()
    out.send((_status("VmHWM") - before) / _MIB)


def _status(name: str) -> float:
    """A field of /proc/self/status in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    raise KeyError(name)
