"""Time candidates in turns: CPU time, wall time and page faults of each call.

CPU time (user + system, every thread of the process) repeats to a few per cent on a shared machine
where wall time does not, and it includes the cost of page faults. Candidates take turns, so that a
slow minute affects all of them; the memory floor is one of them.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

_WARM_CALLS = 10
_SLOW_MS = 10_000.0  # a slower candidate gets one warm-up call and one timed call


@dataclass
class Candidate:
    """One implementation: ``call`` is timed, ``before`` runs untimed before every call."""

    call: Callable[[], object]
    before: Callable[[], object] | None = None
    inner: int = 1  # calls per sample, for calls of microseconds
    warm: int = 2  # warm-up calls before page faults are compared
    slow: bool = False  # set by ``warm_up``: one sample is enough


@dataclass
class Samples:
    """Per-call samples of one candidate, in ms; faults are minor page faults."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return minimum, median and 20-80 % band of CPU time; minimum and median of wall time."""
        ordered = sorted(self.cpu)
        last = len(ordered) - 1
        return {
            "cpu_ms": ordered[0],
            "cpu_ms_p20": ordered[round(0.2 * last)],
            "cpu_ms_p50": median(ordered),
            "cpu_ms_p80": ordered[round(0.8 * last)],
            "wall_ms": min(self.wall),
            "wall_ms_p50": median(self.wall),
            "faults": median(self.faults),
            "rounds": float(len(ordered)),
        }


def time_once(c: Candidate) -> tuple[float, float, float]:
    """Return CPU ms, wall ms and page faults of one call (the mean over ``inner`` calls)."""
    if c.before is not None:
        c.before()
    call, inner = c.call, c.inner
    first = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    for _ in range(inner):
        call()
    wall = time.perf_counter() - start
    last = resource.getrusage(resource.RUSAGE_SELF)
    cpu = last.ru_utime + last.ru_stime - first.ru_utime - first.ru_stime
    return 1e3 * cpu / inner, 1e3 * wall / inner, (last.ru_minflt - first.ru_minflt) / inner


def warm_up(c: Candidate) -> None:
    """Call until page faults stop changing: a recycling heap grows during the first calls."""
    before = -1.0
    for i in range(_WARM_CALLS):
        _, wall, faults = time_once(c)
        if wall > _SLOW_MS:
            c.slow = True
            return
        if i >= c.warm and abs(faults - before) <= max(16.0, 0.01 * before):
            return
        before = faults


def interleave(candidates: Mapping[str, Candidate], rounds: int) -> dict[str, Samples]:
    """Warm up every candidate, then time them in turns; the order alternates between rounds."""
    for c in candidates.values():
        warm_up(c)
    samples = {name: Samples() for name in candidates}
    gc.disable()
    try:
        for i in range(rounds):
            gc.collect()
            names = list(candidates)
            for name in names if i % 2 == 0 else names[::-1]:
                if i and candidates[name].slow:
                    continue
                cpu, wall, faults = time_once(candidates[name])
                s = samples[name]
                s.cpu.append(cpu)
                s.wall.append(wall)
                s.faults.append(faults)
    finally:
        gc.enable()
    return samples
