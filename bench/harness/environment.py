"""Describe where a row was measured: machine, versions, state of the source tree."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What can change a measured number; results and documents cannot.
_SOURCES = ("w2s_fast", "csrc", "kernels", "setup.py", "examples", "bench", ":!bench/results")


def environment() -> dict[str, object]:
    """Return the columns that every row has; ``threads`` are those of this process."""
    import torch

    from w2s_fast.ops import native

    return {
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "isa": native.info().get("isa", "none"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "huge_pages": _huge_pages(),
        "git_sha": _git("rev-parse", "HEAD")[:12],
        "dirty": bool(_git("status", "--porcelain", "--", *_SOURCES)) or core_is_stale(),
        "utc": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "load": round(os.getloadavg()[0], 2),
    }


def child_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a child process that can import bench and w2s_fast."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **variables}


def core_is_stale() -> bool:
    """Return whether a C++ source is newer than the built core, which then lacks its changes."""
    built = [p.stat().st_mtime for p in (ROOT / "w2s_fast").glob("_core*.so")]
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".inc")]
    return bool(built) and max(p.stat().st_mtime for p in files) > max(built)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.is_file():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.processor() or platform.machine())
    model = fields.get("model")
    return f"{name} family {fields.get('cpu family')} model {model}" if model else name


def _huge_pages() -> str:
    """Return ``always``, ``madvise`` or ``never``; it decides what a new gradient buffer costs."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file():
        return "unknown"
    return setting.read_text().partition("[")[2].partition("]")[0]


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
