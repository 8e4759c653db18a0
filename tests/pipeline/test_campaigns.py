"""A few cases of each campaign on whole runs, and that each notices the fault it looks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("leak", "line"),
    [
        (lambda held, folder: held.append(Path(__file__).open()), "open files: never below"),
        (lambda held, folder: (folder.parent / f"tmp/{len(held)}").touch() or held.append(0),
         "temporary files: never below"),
        (lambda held, folder: held.append(bytearray(b"x" * (4 << 20))), "memory grew by"),
    ],
)  # fmt: skip
def test_soak_notices_a_leak(
    leak: Callable[[list[Any], Path], Any],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soak.gc, "collect", lambda: None)  # takes most of the time
    held: list[Any] = []
    outcome = soak.run(range(ROUNDS), 0, tmp_path, {"leaks": lambda _, folder: leak(held, folder)})
    assert any(line in failure for failure in outcome.failures)
    for each in held:
        getattr(each, "close", lambda: None)()


def test_soak_allows_peaks_and_a_warm_up() -> None:
    samples = [{**FLAT, "memory": 500.0 + i} for i in range(10)] + [FLAT] * 20
    samples[17] = {"memory": 900.0, "open files": 12.0, "temporary files": 4.0}
    assert not list(soak.faults(samples))
