"""Peak memory of forward and backward of a fused head beyond its inputs.

Every provider gets a process of its own, forked from a server that has imported torch and nothing
else. It makes the inputs, makes one call so that libraries, compilers and primitives are loaded,
gives freed pages back, and then reads how far the resident set of a second call rises above the
resident set before it: logits, gradients (those of hidden and head among them), temporaries of
every library. The C library's stock allocator is used, so that freed buffers leave at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench import linear

_MIB = 1024.0
_LIMIT_S = 240.0


def peaks(
    providers: list[str], case: str, dtype: str, n: int, d: int, v: int, threads: int
) -> dict[str, float]:
    """Provider -> peak MiB over inputs; without those whose process failed or took too long."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.linear"])
    found = {}
    for provider in providers:
        ours, theirs = context.Pipe(duplex=False)
        args = (theirs, provider, case, dtype, n, d, v, threads)
        child = context.Process(target=_measure, args=args)
        child.start()
        theirs.close()
        with contextlib.suppress(EOFError):
            if ours.poll(_LIMIT_S):
                found[provider] = ours.recv()
        if child.is_alive() and provider not in found:
            child.kill()
        child.join()
    return found


def _measure(
    out: Connection, provider: str, case: str, dtype: str, n: int, d: int, v: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    x = linear.make_inputs(case, dtype, n, d, v)
    call = linear.loss(provider, case, x)
    assert call is not None
    linear.step(x, call)
    linear.reset(x)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    linear.step(x, call)
    out.send((_status("VmHWM") - before) / _MIB)


def _status(name: str) -> float:
    """A field of /proc/self/status in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    raise KeyError(name)
