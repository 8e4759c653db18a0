"""Curves of the students' trainings for the page: the quantities of every step, thinned out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.pipeline.artifacts import LOG

MOST_POINTS = 60  # of a curve
CURVES = {"loss": "losses", "agreement": "agreement", "threshold": "threshold",
          "coefficient": "coefficient"}  # fmt: skip


def training_row(seed: int, name: str, folder: Path) -> dict[str, Any] | None:
    """Return the curves of one student; None if it was not trained.

    Args:
        seed: Seed of the run.
        name: Name of the student.
        folder: Folder of its stage. The log of an earlier version has fewer quantities.
    """
    log = json.loads((folder / LOG).read_bytes())
    if not log["steps"]:
        return None
    parts = np.array_split(np.arange(log["steps"]), min(MOST_POINTS, log["steps"]))
    curves = {curve: _thinned(log[key], parts) for curve, key in CURVES.items() if log.get(key)}
    return {
        "seed": seed,
        "name": name,
        "steps": log["steps"],
        "at": [int(part[-1]) + 1 for part in parts],
        **curves,
    }


def _thinned(values: list[float | None], parts: list[np.ndarray]) -> list[float | None]:
    """Return the mean of each part of the steps, to four digits; None where it has no value."""
    steps = np.array([np.nan if v is None else v for v in values], dtype=float)
    defined = [steps[part][np.isfinite(steps[part])] for part in parts]
    return [float(f"{own.mean():.4g}") if len(own) else None for own in defined]
