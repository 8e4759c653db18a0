"""A few cases of each campaign on whole runs, and that each notices the fault it looks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from campaigns import soak

ROUNDS = 15
FLAT = {"memory": 700.0, "open files": 10.0, "temporary files": 1.0}


@pytest.mark.slow
def test_soak_runs_every_job(tmp_path: Path) -> None:
    """But the sweep, which takes as long as all others."""
    cheap = {k: v for k, v in soak.JOBS.items() if k != "sweep"}
    outcome = soak.run(range(len(cheap)), 0, tmp_path, cheap)
    assert not outcome.failures
    assert all(outcome.kinds[f"jobs: {name}"] == 1 for name in cheap)


def _file(held: ExitStack, folder: Path) -> None:
    held.enter_context(open(__file__))  # noqa: SIM115


def _temporary(held: ExitStack, folder: Path) -> None:
    (folder.parent / "tmp" / str(time.monotonic_ns())).touch()


def _memory(held: ExitStack, folder: Path) -> None:
    held.callback(bytes.decode, b"x" * (4 << 20))


@pytest.mark.parametrize(
    ("leak", "line"),
    [
        (_file, "open files: never below"),
        (_temporary, "temporary files: never below"),
        (_memory, "memory grew by"),
    ],
)
def test_soak_notices_a_leak(
    leak: Callable[[ExitStack, Path], None],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soak.gc, "collect", lambda: None)  # takes most of the time
    with ExitStack() as held:
        jobs = {"leaks": lambda _, folder: leak(held, folder)}
        outcome = soak.run(range(ROUNDS), 0, tmp_path, jobs)
    assert any(line in failure for failure in outcome.failures)


def test_soak_allows_peaks_and_a_warm_up() -> None:
    samples = [{**FLAT, "memory": 500.0 + i} for i in range(10)] + [FLAT] * 20
    samples[17] = {"memory": 900.0, "open files": 12.0, "temporary files": 4.0}
    assert not list(soak.faults(samples))
