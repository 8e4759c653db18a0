"""One group of candidates that are timed together, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bench.harness.cpu_timing import Samples
from bench.harness.environment import environment

_FLOORS = ("floor_write", "floor_read", "gemms")


@dataclass(frozen=True)
class Job:
    """One group of candidates that are timed together; ``allocator`` is set by the parent."""

    op: str
    case: str
    dtype: str
    n: int
    v: int
    allocator: str
    threads: int
    providers: tuple[str, ...]
    rounds: int
    quick: bool = False
    d: int = 0  # hidden size, for a head


def rows(
    job: Job, samples: Mapping[str, Samples], errors: Mapping[str, dict[str, float]]
) -> list[dict[str, object]]:
    """Rows in the order of the candidates, with ratios to ours and to the memory floor.

    ``ratio_to_ours`` is this provider's CPU time over ours of the same turns: above 1, ours is
    faster. ``floor_ratio`` is the CPU time over that of reading and writing the same bytes, for a
    head over that of its bare products.
    """
    summary = {name: s.summary() for name, s in samples.items()}
    floor = sum(summary[name]["cpu_ms"] for name in _FLOORS if name in summary)
    about = environment()
    found = []
    for name, numbers in summary.items():
        row: dict[str, object] = {**asked(job), "provider": name, **_rounded(numbers)}
        for column, base in (("ratio_to_ours", "ours"), ("ratio_to_inplace", "ours_inplace")):
            if base in summary:
                row[column] = _digits(numbers["cpu_ms"] / max(summary[base]["cpu_ms"], 1e-9))
        if floor > 0:
            row["floor_ratio"] = _digits(numbers["cpu_ms"] / floor)
        found.append({**row, **_rounded(errors.get(name, {})), **about})
    return found


def asked(job: Job) -> dict[str, object]:
    """The columns that say what was measured."""
    left_out = ("providers", "rounds", "threads") + (() if job.d else ("d",))
    return {k: v for k, v in asdict(job).items() if k not in left_out}


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: _digits(x) for name, x in numbers.items()}


def _digits(x: float) -> float:
    return float(f"{x:.4g}") if x < 1e4 else float(round(x))
