"""Where the stages of a sweep are computed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from w2s_fast.errors import W2SError
from w2s_fast.pipeline.pool import choose_sizes
from w2s_fast.sweeps.grid import Cell


def device_of(devices: Sequence[str]) -> str:
    """Return ``RunConfig.device`` of all runs: "auto" where it comes to the devices asked for.

    Results are stored under that word, so a run before or after the sweep shares its stages.

    Raises:
        W2SError: There is no such device.
    """
    import torch

    count = torch.cuda.device_count()
    for name in devices:
        kind, _, number = name.partition(":")
        if kind == "cuda" and int(number) >= count:
            has = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
            raise W2SError(f"devices: {name!r}, but torch finds {has} here; try --devices cpu")
    return "cpu" if count and "cpu" in devices else "auto"


def places(devices: Sequence[str], cells: Sequence[Cell]) -> list[dict[str, str]]:
    """Return the environment of the process at each place.

    A process sees its one CUDA device and no other. Threads of each depend on models and machine
    only, not on the number of places: the order of a sum must not follow from who else computes.
    """
    import torch

    names = list(devices) or [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if not names:
        names = ["cpu"] * min(choose_sizes(cell.cfg, cuda=False)[0] for cell in cells)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = [name.strip() for name in seen.split(",") if name.strip()]

    def environment(name: str) -> dict[str, str]:
        kind, _, number = name.partition(":")
        if kind == "cpu":
            return {}
        return {"CUDA_VISIBLE_DEVICES": visible[int(number)] if visible else number}

    return [environment(name) for name in names]
