"""Provenance of a result: configuration, code, versions, machine, and the digest of every stage."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig, to_dict
from w2s_fast.files import content_hash
from w2s_fast.pipeline.job_identity import VERSIONS
from w2s_fast.store import Artifact
from w2s_fast.tasks import TaskData
from w2s_fast.version import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "triton")


def provenance(
    cfg: RunConfig,
    results: Mapping[str, Artifact],
    cached: set[str],
    data: Mapping[int, Mapping[str, Mapping[str, int]]],
    digests: Mapping[int, Mapping[str, str]],
) -> dict[str, Any]:
    """Return the ``provenance`` block of results.json.

    Args:
        cfg: Configuration of the run.
        results: Artifacts by job name.
        cached: Names of the jobs whose results came from the store.
        data: ``class_counts`` by seed.
        digests: ``data_digests`` by seed.
    """
    from w2s_fast.ops import backends_info

    root = cfg.store_dir.absolute()
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": to_dict(cfg),
        "versions": versions(),
        "machine": machine(),
        "git": git_state(),
        "backends": backends_info() | {"forced": os.environ.get("W2S_BACKEND", "")},
        "ops": _served_ops(results.values()),
        "stage_versions": VERSIONS,
        "data": {str(seed): counts for seed, counts in data.items()},
        "test_items": {
            str(seed): content_hash([own["test.inputs"], own["test.labels"]])
            for seed, own in digests.items()
        },
        "store": str(root),
        "stages": {
            name: {
                "folder": done.path.name,
                "digest": done.digest,
                "seconds": done.info.get("seconds"),
                "reused": name in cached,
            }
            for name, done in results.items()
        },
    }


def class_counts(data: TaskData) -> dict[str, dict[str, int]]:
    """Return the number of rows by split and class; rows of generation tasks are ``answers``."""
    names = ("answers",) if data.kind == "generation" else data.class_names
    counts = {k: np.bincount(part.labels, minlength=len(names)) for k, part in data.splits.items()}
    return {k: dict(zip(names, n.tolist(), strict=True)) for k, n in counts.items()}


def _served_ops(artifacts: Iterable[Artifact]) -> dict[str, list[str]]:
    """Return op -> the backends that computed it in any stage of the run."""
    served: dict[str, set[str]] = {}
    for artifact in artifacts:
        for op, names in artifact.info.get("ops", {}).items():
            served.setdefault(op, set()).update(names)
    return {op: sorted(names) for op, names in sorted(served.items())}


def versions() -> dict[str, str | None]:
    """Return the versions of Python, this package and its dependencies; None: not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "w2s_fast": __version__}
    return versions | {name: package_version(name) for name in PACKAGES}


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Return system, CPU and GPU of this machine."""
    import torch

    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit of the source checkout and whether it is dirty; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, check=True)
        return done.stdout.decode(errors="replace").strip()  # names of files may be anything

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
