"""Measure the device time of calls by CUDA events with a cold L2 cache, and the GPU's ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

_WARM = 3
_LEAST, _MOST = 7, 50


class Flusher:
    """Evict the L2 cache by writing four times its size, untimed, before every timed call."""

    def __init__(self) -> None:
        size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20
        self._buffer = torch.empty(4 * size // 4, dtype=torch.int32, device="cuda")

    def __call__(self) -> None:
        """Enqueue the write."""
        self._buffer.zero_()


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return p20, p50, p80 and minimum of times in ms, and their number."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {
        "ms_p20": ordered[round(0.2 * last)],
        "ms_p50": median(ordered),
        "ms_p80": ordered[round(0.8 * last)],
        "ms_min": ordered[0],
        "rounds": len(ordered),
    }


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    before: Callable[[str], None],
    seconds: float,
    drop: Callable[[str, Exception], None],
) -> dict[str, dict[str, float]]:
    """Time all calls in turns, so that a change of clocks affects all of them.

    ``before`` runs untimed before each call. A call that raises is removed and passed to ``drop``.
    """
    flush, running = Flusher(), dict(calls)
    for name in list(running):
        try:
            for _ in range(_WARM):
                before(name)
                running[name]()
            torch.cuda.synchronize()
        except Exception as e:  # a kernel of another library may not support this GPU
            del running[name]
            drop(name, e)
    times: dict[str, list[float]] = {name: [] for name in running}
    end, turn = time.monotonic() + seconds, 0
    while turn < _LEAST or (turn < _MOST and time.monotonic() < end):
        order = list(running) if turn % 2 == 0 else list(running)[::-1]
        events = []
        for name in order:
            before(name)
            flush()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            running[name]()
            stop.record()
            events.append((name, start, stop))
        torch.cuda.synchronize()
        for name, start, stop in events:
            times[name].append(start.elapsed_time(stop))
        turn += 1
        if not running:
            break
    return {name: summary(samples) for name, samples in times.items()}


def peak_mib(before: Callable[[], None], call: Callable[[], Any]) -> float:
    """Return the peak memory of a call beyond the memory before it, in MiB."""
    before()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - base) / 2**20


def ceilings() -> dict[str, float]:
    """Measure GB/s of a copy (read and write) and TFLOP/s of square products."""
    source = torch.empty(
        1 << 28, dtype=torch.float32, device="cuda"
    )  # 1 GiB: larger than any L2 cache
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    n = 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.randn(n, n, device="cuda").to(dtype)
        out = torch.empty_like(a)
        calls[f"gemm_{name}"] = lambda a=a, out=out: torch.mm(a, a, out=out)

    def fail(name: str, error: Exception) -> None:
        raise error

    times = interleave(calls, lambda _: None, 3.0, fail)
    rates = {"copy_gbps": 2 * source.nbytes / times["copy"]["ms_p50"] / 1e6}
    for name in ("bf16", "fp32"):
        rates[f"gemm_{name}_tflops"] = 2 * n**3 / times[f"gemm_{name}"]["ms_p50"] / 1e9
    return rates
