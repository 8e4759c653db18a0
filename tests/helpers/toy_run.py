"""A whole run of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, from_dict


def config(out: Path, **changes: Any) -> RunConfig:
    """A run of seconds: bags of words."""
    values = {
        "task": {"n_weak": 40, "n_transfer": 48, "n_test": 40},
        "weak": {"source": "bow"},
        "student": {"source": "bow"},
        "weak_train": {"epochs": 2, "lr": 0.1, "batch_size": 16},
        "student_train": {"epochs": 2, "lr": 0.1, "batch_size": 16},
        "losses": ["xent"],
        "seeds": [0],
        "output_dir": str(out),
        "workers": 1,
        "threads": 1,
    }
    return from_dict({**values, **changes})
