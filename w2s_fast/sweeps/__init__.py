"""Many runs as one: models x losses x methods x seeds x tasks. See ``sweep``."""

from __future__ import annotations

from w2s_fast.sweeps.config import SweepConfig
from w2s_fast.sweeps.experiment import sweep

__all__ = ["SweepConfig", "sweep"]
