"""Both stages of reasoning in a run of several processes, and after kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from helpers.process_runs import (
    Kill,
    arrays_of,
    assert_close,
    assert_kills_change_no_byte,
    results_of,
    run,
    stage_folders,
    write_run,
)
from helpers.reasoning_runs import STAGE_ONE, STAGE_TWO, language_model, reasoning_run

from w2s_fast.pipeline.artifacts import SAMPLES

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
BOTH = f"{STAGE_ONE}|{STAGE_TWO}"
Finished = tuple[list[Any], dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("base") / "lm")


def job(folder: Path, model: Path, zero: int) -> list[str]:
    """Write a run with students of a ZeRO stage, and return the arguments that start it."""
    folder.mkdir()
    return write_run(folder, reasoning_run(folder, model, [BOTH]), zero_stage=zero)


def read(folder: Path) -> Finished:
    """Return reports, samples by stage, and what models computed."""
    texts = {
        name: [part.read_bytes() for part in sorted((path / SAMPLES).iterdir())]
        for name, path in stage_folders(folder).items()
        if (path / SAMPLES).exists()
    }
    return results_of(folder)["text_labels"], texts, arrays_of(folder)


@pytest.fixture(scope="module")
def one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("one") / "run"
    run(1, job(folder, model, 0))
    return read(folder)


@pytest.mark.parametrize("zero", ranks.ZERO_STAGES[1])
def test_two_processes_equal_one(zero: int, one: Finished, model: Path, tmp_path: Path) -> None:
    """The same texts and selections, hence students; losses differ by rounding."""
    reports, texts, arrays = one
    losses = [name for name in arrays if name.endswith(" losses")]
    assert len(texts) == 4 and len(losses) == 4 and len(reports) == 4
    run(2, job(tmp_path / "two", model, zero))
    other = read(tmp_path / "two")
    assert other[:2] == (reports, texts)
    assert_close(other[2], arrays, zero)


def test_kills_change_no_byte(model: Path, tmp_path: Path) -> None:
    """Killed in the samples of stage II, and at the second checkpoint of its student."""
    student = f"student/0/{BOTH}+xent"
    kills = [Kill(f"samples/0/{BOTH}+xent/4", "part", 2), Kill(student, "checkpoint", 2)]
    assert_kills_change_no_byte(lambda folder: job(folder, model, 0), kills, tmp_path)
