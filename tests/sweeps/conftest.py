"""The results that the tests of sweeps share."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.toy_sweep import toy_sweep

import w2s_fast
from w2s_fast.sweeps import SweepConfig


@pytest.fixture(scope="session")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, dict[str, Any]]:
    """Run the toy sweep once with one process; return its configuration and results."""
    cfg = toy_sweep(tmp_path_factory.mktemp("serial"))
    return cfg, w2s_fast.sweep(cfg)
