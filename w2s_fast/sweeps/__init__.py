"""Run many experiments as one: models x losses x methods x seeds x tasks. See ``sweep``."""

from __future__ import annotations

from w2s_fast.sweeps.run_sweep import sweep
from w2s_fast.sweeps.sweep_config import SweepConfig

__all__ = ["SweepConfig", "sweep"]
