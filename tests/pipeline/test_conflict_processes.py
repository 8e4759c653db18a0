"""Students under a conflict by several processes, and after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import ranks
from helpers.conflict_runs import conflict_run
from helpers.process_runs import (
    Kill,
    arrays_of,
    assert_close,
    assert_kills_change_no_byte,
    run,
    write_run,
)
from helpers.text_runs import SCRATCH

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
METHODS = [
    "naive", "explicit_conflict:alpha=2", "implicit_conflict", "explicit_conflict|implicit_conflict"
]  # fmt: skip


def job(folder: Path, preference: str, zero: int, **train: Any) -> list[str]:
    """Write a run and return the arguments that start it."""
    folder.mkdir()
    recipe = {"epochs": 1, "lr": 0.01, "batch_size": 16, "timeout_s": 120}
    model = {**SCRATCH, "preference": preference}
    cfg = conflict_run(
        folder,
        weak=model,
        student=model,
        methods=METHODS,
        weak_train=recipe,
        student_train=recipe,
    )
    return write_run(folder, cfg, zero_stage=zero, micro_batch_size=4, **train)


@pytest.mark.parametrize(
    ("preference", "stages"), [("", ranks.ZERO_STAGES[1]), ("dpo:beta=0.5", ranks.ZERO_STAGES[2])]
)
def test_two_processes_equal_one(preference: str, stages: tuple[int, ...], tmp_path: Path) -> None:
    """Reward models and policies; tests/losses has every ZeRO stage of one training."""
    run(1, job(tmp_path / "one", preference, 0))
    one = arrays_of(tmp_path / "one")
    students = [name for name in one if name.endswith(" probs")]
    assert len(students) == len(METHODS)
    for zero in stages:
        folder = tmp_path / f"two-{zero}"
        run(2, job(folder, preference, zero))
        assert_close(arrays_of(folder), one, zero)


def test_kills_change_no_byte(tmp_path: Path) -> None:
    """Killed in the students of the implicit conflict, and of both."""

    def start(folder: Path) -> list[str]:
        return job(folder, "", 0, checkpoint_every=2)

    kills = [Kill(f"student/0/{method}+xent", "checkpoint", 2) for method in METHODS[2:]]
    assert_kills_change_no_byte(start, kills, tmp_path)
