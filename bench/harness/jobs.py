"""A job is a group of candidates that are timed together; turn its samples into rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bench.harness.cpu_timing import Samples
from bench.harness.environment import environment

_FLOORS = ("floor_write", "floor_read", "gemms")


@dataclass(frozen=True)
class Job:
    """A group of candidates that are timed together; the parent sets ``allocator``."""

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


def job_rows(
    job: Job, samples: Mapping[str, Samples], errors: Mapping[str, dict[str, float]]
) -> list[dict[str, object]]:
    """Return a row per candidate, with ratios to ours and to the memory floor.

    ``ratio_to_ours`` is the provider's CPU time over ours in the same turns: above 1, ours is
    faster. ``floor_ratio`` is the CPU time over that of reading and writing the same bytes; for a
    head, over that of its bare products.
    """
    summary = {name: s.summary() for name, s in samples.items()}
    floor = sum(summary[name]["cpu_ms"] for name in _FLOORS if name in summary)
    columns = environment()
    rows = []
    for name, numbers in summary.items():
        row: dict[str, object] = {**job_columns(job), "provider": name, **_rounded(numbers)}
        for ratio, base in (("ratio_to_ours", "ours"), ("ratio_to_inplace", "ours_inplace")):
            if base in summary:
                row[ratio] = _round(numbers["cpu_ms"] / max(summary[base]["cpu_ms"], 1e-9))
        if floor > 0:
            row["floor_ratio"] = _round(numbers["cpu_ms"] / floor)
        rows.append({**row, **_rounded(errors.get(name, {})), **columns})
    return rows


def job_columns(job: Job) -> dict[str, object]:
    """Return the columns that describe what was measured."""
    omitted = ("providers", "rounds", "threads") + (() if job.d else ("d",))
    return {k: v for k, v in asdict(job).items() if k not in omitted}


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: _round(x) for name, x in numbers.items()}


def _round(x: float) -> float:
    return float(f"{x:.4g}") if x < 1e4 else float(round(x))
