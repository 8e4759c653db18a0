"""Choose the devices on which a sweep computes its stages."""

from __future__ import annotations

import os
from collections.abc import Sequence

from w2s_fast.errors import W2SError
from w2s_fast.pipeline.pool import choose_parallelism
from w2s_fast.sweeps.grid import Cell


def device_of(devices: Sequence[str]) -> str:
    """Return ``RunConfig.device`` of all runs: "auto" where it selects the given devices.

    Stored results depend on this setting; with "auto" a single run and a sweep share stages.

    Raises:
        W2SError: A device does not exist.
    """
    import torch

    count = torch.cuda.device_count()
    for name in devices:
        kind, _, number = name.partition(":")
        if kind == "cuda" and int(number) >= count:
            present = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
            raise W2SError(f"devices: {name!r}, but torch finds {present}; try --devices cpu")
    return "cpu" if count and "cpu" in devices else "auto"


def worker_environments(devices: Sequence[str], cells: Sequence[Cell]) -> list[dict[str, str]]:
    """Return the environment variables of each worker process, one process per device.

    A process sees a single CUDA device. The number of threads depends on models and machine, not on
    the number of workers, so that sums are added in the same order for any number of workers.
    """
    import torch

    names = list(devices) or [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if not names:
        names = ["cpu"] * min(choose_parallelism(cell.cfg, cuda=False)[0] for cell in cells)
    variable = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = [name.strip() for name in variable.split(",") if name.strip()]

    def environment(name: str) -> dict[str, str]:
        kind, _, number = name.partition(":")
        if kind == "cpu":
            return {}
        return {"CUDA_VISIBLE_DEVICES": visible[int(number)] if visible else number}

    return [environment(name) for name in names]
