"""Describe where a GPU row was measured: GPU, driver, versions, state of the source tree."""

from __future__ import annotations

import importlib.metadata
import subprocess

from bench.harness.environment import environment

_PEERS = ("liger-kernel", "cut-cross-entropy", "quack-kernels", "flash-attn", "nvidia-cutlass-dsl")
_QUERY = "driver_version,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def gpu_environment() -> dict[str, object]:
    """Return the columns of the environment row; needs a CUDA device."""
    import torch

    gpu = torch.cuda.get_device_properties(0)
    return {
        **environment(),
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "l2_mib": round(getattr(gpu, "L2_cache_size", 0) / 2**20, 1),
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        **query_nvidia_smi(),
        "peers": {name: v for name in _PEERS if (v := version(name))},
    }


def version(name: str) -> str:
    """Return the installed version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def query_nvidia_smi() -> dict[str, str]:
    """Return driver, clocks and power limit from nvidia-smi; empty if it is missing."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    names = [name.replace(".", "_") for name in _QUERY.split(",")]
    return dict(zip(names, (x.strip() for x in done.stdout.strip().split(",")), strict=False))
