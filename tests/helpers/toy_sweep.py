"""A sweep that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2s_fast.config import from_dict
from w2s_fast.sweeps import SweepConfig

SCRATCH = "scratch:hidden=8,heads=2,lr=1e-3"


def toy_sweep(out: Path, **changes: Any) -> SweepConfig:
    """Return a sweep of two supervisors, one student, two losses and two seeds."""
    train = {"epochs": 2, "batch_size": 8, "lr": 0.05, "checkpoint_every": 2}
    run = from_dict(
        {
            "task": {"n_weak": 40, "n_transfer": 64, "n_test": 60},
            "weak_train": train,
            "student_train": train,
            "losses": ["xent", "logconf"],
            "seeds": [0, 1],
            "threads": 1,
        }
    )
    plain = {"run": run, "weak_models": ("bow", SCRATCH), "student_models": ("bow",)}
    return SweepConfig(**{**plain, "devices": ("cpu",), "output_dir": str(out), **changes})
