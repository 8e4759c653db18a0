"""Measure jobs in fresh processes, one allocator setting each, and show their rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

from bench.harness.environment import ROOT
from bench.harness.jobs import Job
from bench.harness.row_files import Row

ALLOCATORS = {
    "stock": {},
    "recycled": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"},
}


def spawn(group: list[Job]) -> Iterator[Row]:
    """Measure jobs of one allocator in one fresh process; yield rows as they come."""
    settings = {
        **ALLOCATORS[group[0].allocator],
        "OMP_NUM_THREADS": str(group[0].threads),
        # Waiting threads sleep: otherwise their spinning would count as CPU time of a candidate.
        "OMP_WAIT_POLICY": "passive",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "bench.job_worker", json.dumps([asdict(j) for j in group])]
    with subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if child.returncode:
        raise SystemExit(f"bench: measuring {group[0]} failed with exit code {child.returncode}")


def show(row: Row) -> str:
    """One line of the terminal table."""
    shape = "x".join(str(row[name]) for name in ("n", "d", "v") if name in row)
    if "skipped" in row:
        who = f"{row['provider']:<14} skipped: {row['skipped']}"
        return f"{row['case']:<14} {row['dtype']} {shape:<12} {row['allocator']:<8} {who}"
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
