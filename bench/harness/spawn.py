"""Measure jobs in new processes, one allocator setting each, and print and store their rows."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from bench.harness.environment import child_environment
from bench.harness.jobs import Job
from bench.harness.row_files import Row, store

ALLOCATORS = {
    "stock": {},
    "recycled": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"},
}


def select_names(text: str, known: Iterable[str]) -> list[str]:
    """Return the comma-separated names in ``text``, all ``known`` ones if it is empty.

    Raises:
        SystemExit: A name is unknown.
    """
    everything = list(known)
    names = text.split(",") if text else everything
    for name in names:
        if name not in everything:
            raise SystemExit(f"bench: unknown {name!r}; expected some of {everything}")
    return names


def measure_groups(groups: Iterable[list[Job]], options: argparse.Namespace) -> None:
    """Measure every group of jobs in a process of its own; print and store the rows."""
    for group in groups:
        rows = []
        for row in spawn(group):
            rows.append(row)
            print(format_row(row), flush=True)
        store(rows, options)


def spawn(group: list[Job]) -> Iterator[Row]:
    """Measure jobs of one allocator in one new process; yield rows as they arrive."""
    settings = {
        **ALLOCATORS[group[0].allocator],
        "OMP_NUM_THREADS": str(group[0].threads),
        # Waiting threads sleep: if they spun, that would count as CPU time of a candidate.
        "OMP_WAIT_POLICY": "passive",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    command = [sys.executable, "-m", "bench.job_worker", json.dumps([asdict(j) for j in group])]
    with subprocess.Popen(
        command, env=child_environment(**settings), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if child.returncode:
        raise SystemExit(f"bench: measuring {group[0]} failed with exit code {child.returncode}")


def format_row(row: Row) -> str:
    """Return a line of the terminal table."""
    shape = "x".join(str(row[name]) for name in ("n", "d", "v") if name in row)
    if "skipped" in row:
        reason = f"{row['provider']:<14} skipped: {row['skipped']}"
        return f"{row['case']:<14} {row['dtype']} {shape:<12} {row['allocator']:<8} {reason}"
    ratios = "".join(
        f" {label} {row[name]:>7}" if name in row else " " * (len(label) + 9)
        for label, name in (
            ("/ours", "ratio_to_ours"),
            ("/inplace", "ratio_to_inplace"),
            ("/floor", "floor_ratio"),
        )
    )
    return (
        f"{row['case']:<14} {row['dtype']} {shape:<12} {row['allocator']:<8} {row['provider']:<14} "
        f"cpu {row['cpu_ms']:>8} ms  wall {row['wall_ms']:>8} ms  faults {row['faults']:>8}{ratios}"
    )
