"""What the tests of documents share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs compute in this process: their stages take less time than the start of workers."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
