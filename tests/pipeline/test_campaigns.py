"""A few cases of each campaign on whole runs, and that each notices the fault it looks for."""

from __future__ import annotations

import gc
import mmap
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from campaigns import environment, flips, kills, soak, states
from campaigns.recipes import differences

from w2s_fast import store
from w2s_fast.files import read_sealed

ROUNDS = 15
FLAT = {"memory": 700.0, "open files": 10.0, "temporary files": 1.0}


@pytest.mark.slow
def test_soak_runs_every_job(tmp_path: Path) -> None:
    """But the sweep, which takes as long as all others."""
    cheap = {k: v for k, v in soak.JOBS.items() if k != "sweep"}
    outcome = soak.run(range(len(cheap)), 0, tmp_path, cheap)
    assert not outcome.failures
    assert all(outcome.kinds[f"jobs: {name}"] == 1 for name in cheap)
    assert outcome.kinds["rounds too few to judge growth"] == outcome.kinds["rounds of jobs"] == 1


def _file(held: ExitStack, folder: Path) -> None:
    held.enter_context(open(__file__))  # noqa: SIM115


def _temporary(held: ExitStack, folder: Path) -> None:
    (folder.parent / "tmp" / str(time.monotonic_ns())).touch()


def _memory(held: ExitStack, folder: Path) -> None:
    # A mapping of its own: the heap may still hold what earlier tests have freed.
    held.enter_context(mmap.mmap(-1, 8 << 20)).write(b"x" * (8 << 20))


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
    gc.collect()  # what earlier tests have left would be freed in the rounds
    monkeypatch.setattr(soak.gc, "collect", lambda: None)  # takes most of the time
    with ExitStack() as held:
        jobs = {"leaks": lambda _, folder: leak(held, folder)}
        outcome = soak.run(range(ROUNDS), 0, tmp_path, jobs)
    assert any(line in failure for failure in outcome.failures)


def test_soak_allows_peaks_and_a_warm_up() -> None:
    samples = [{**FLAT, "memory": 500.0 + i} for i in range(10)] + [FLAT] * 20
    samples[17] = {"memory": 900.0, "open files": 12.0, "temporary files": 4.0}
    assert not list(soak.faults(samples))


FEW = ("debate",)  # the quickest


@pytest.mark.slow
@pytest.mark.dist
def test_kills(tmp_path: Path) -> None:
    outcome = kills.run(range(2), 1, tmp_path, FEW)
    assert not outcome.failures and outcome.cases == outcome.kinds["of debate"] >= 2


def test_kills_compare_every_file() -> None:
    expected = {"a": "1", "b": "2", "c": ""}
    assert not differences(expected, dict(expected))
    lines = differences({"a": "1", "b": "3", "d": ""}, expected)
    assert lines == ["c is missing", "d was left behind", "b differs"]


@pytest.mark.slow
@pytest.mark.dist
def test_flips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong; damage is noticed where files are not compared with their record."""
    outcome = flips.run(range(12), 0, tmp_path / "sound", FEW)
    assert not outcome.failures and outcome.cases == 12
    monkeypatch.setattr(store, "_read_meta", lambda path: (read_sealed(path / "stage.json"), ""))
    broken = flips.run(range(12), 0, tmp_path / "broken", FEW)
    assert any("differs" in line for line in broken.failures)


def test_kinds_of_files() -> None:
    killed, stage = "/cache/.labels-0123456789ab/checkpoint", "/cache/labels-0123456789ab"
    names = {
        "/cache/generated_votes-0123456789ab/votes.parquet": "votes.parquet of a stage",
        f"{killed}/step-00000003/state.json": "record of a checkpoint",
        f"{killed}/labels/part-00000.parquet": "part of a killed stage",
        f"{stage}/labels/part-00000.parquet": "labels of a stage",
        f"{stage}/model.safetensors": "model.safetensors of a stage",
        f"{stage}/stage.json": "record of a stage",
        "/plot.png": "plot, page or table",
    }
    assert {name: states.kind_of(name) for name in names} == names


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts disks and changes users: needs root")
def test_environment(tmp_path: Path) -> None:
    cheap = [i for i, name in enumerate(environment.SITUATIONS) if name != "clock set back"]
    outcome = environment.run(cheap, 0, tmp_path, FEW)
    assert not outcome.failures and set(outcome.kinds) >= {"disk full", "two runs"}
