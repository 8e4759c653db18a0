"""Device time of a call by CUDA events, L2 cache cold, and what the card can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

_WARM = 3
_LEAST, _MOST = 7, 50


class Flusher:
    """Evicts the L2 cache by writing four times its size; untimed, before every timed call."""

    def __init__(self) -> None:
        size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20
        self._room = torch.empty(4 * size // 4, dtype=torch.int32, device="cuda")

    def __call__(self) -> None:
        """Queue the write."""
        self._room.zero_()


def summary(samples: Sequence[float]) -> dict[str, float]:
    """p20, p50, p80 and least of times in ms, and their number."""
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
    """Times of all calls in turns, so that a change of clocks hits every one of them.

    ``before`` runs untimed in front of each call. A call that raises leaves the race and is handed
    to ``drop``.
    """
    flush, alive = Flusher(), dict(calls)
    for name in list(alive):
        try:
            for _ in range(_WARM):
                before(name)
                alive[name]()
            torch.cuda.synchronize()
        except Exception as e:  # another library's kernel may refuse this card: that is a result
            del alive[name]
            drop(name, e)
    found: dict[str, list[float]] = {name: [] for name in alive}
    end, turn = time.monotonic() + seconds, 0
    while turn < _LEAST or (turn < _MOST and time.monotonic() < end):
        order = list(alive) if turn % 2 == 0 else list(alive)[::-1]
        marks = []
        for name in order:
            before(name)
            flush()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            alive[name]()
            stop.record()
            marks.append((name, start, stop))
        torch.cuda.synchronize()
        for name, start, stop in marks:
            found[name].append(start.elapsed_time(stop))
        turn += 1
        if not alive:
            break
    return {name: summary(times) for name, times in found.items()}


def peak_mib(before: Callable[[], None], call: Callable[[], Any]) -> float:
    """Most memory that a call has beyond what there was before it, in MiB."""
    before()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - base) / 2**20


def ceilings() -> dict[str, float]:
    """Measured on this card: GB/s of a copy (read and write), TFLOP/s of a square product."""
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")  # 1 GiB: far beyond any L2
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    n = 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.randn(n, n, device="cuda").to(dtype)
        out = torch.empty_like(a)
        calls[f"gemm_{name}"] = lambda a=a, out=out: torch.mm(a, a, out=out)

    def refuse(name: str, error: Exception) -> None:
        raise error

    times = interleave(calls, lambda _: None, 3.0, refuse)
    found = {"copy_gbps": 2 * source.nbytes / times["copy"]["ms_p50"] / 1e6}
    for name in ("bf16", "fp32"):
        found[f"gemm_{name}_tflops"] = 2 * n**3 / times[f"gemm_{name}"]["ms_p50"] / 1e9
    return found
