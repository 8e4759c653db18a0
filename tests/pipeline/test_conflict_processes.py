"""Students under a conflict by several processes, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ranks
from helpers.conflict_runs import conflict_run
from helpers.text_runs import SCRATCH

from w2s_fast.cli import main as cli
from w2s_fast.config import to_yaml
from w2s_fast.training import checkpoint

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
METHODS = ["naive", "explicit_conflict:alpha=2", "explicit_conflict|implicit_conflict"]


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
        student_train={**recipe, "zero_stage": zero, "micro_batch_size": 4, **train},
    )
    path = folder / "run.yaml"
    path.write_text(to_yaml(cfg))
    return ["run", "--config", str(path), "--quiet"]


def students_of(folder: Path) -> dict[str, Path]:
    """Return the folder of every student's stage by name."""
    out = folder / "out"
    stages = json.loads((out / "results.json").read_text())["provenance"]["stages"]
    return {
        name: out / "cache" / stage["folder"]
        for name, stage in stages.items()
        if name.startswith("student/")
    }


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Return losses and predictions of every student."""
    arrays = {}
    for name, path in students_of(folder).items():
        arrays[f"{name} losses"] = np.array(json.loads((path / "log.json").read_text())["losses"])
        arrays[f"{name} probs"] = np.array(
            pq.read_table(path / "test.parquet")["probs"].to_pylist()
        )
    return arrays


@pytest.mark.parametrize(("preference", "stages"), [("", (1, 3)), ("dpo:beta=0.5", (0, 2, 3))])
def test_two_processes_equal_one(preference: str, stages: tuple[int, ...], tmp_path: Path) -> None:
    """Reward models and policies; tests/losses has every ZeRO stage of one training."""
    ranks.run(__file__, 1, job(tmp_path / "one", preference, 0))
    one = arrays_of(tmp_path / "one")
    assert len(one) == 2 * len(METHODS)
    for zero in stages:
        folder = tmp_path / f"two-{zero}"
        ranks.run(__file__, 2, job(folder, preference, zero))
        two = arrays_of(folder)
        assert two.keys() == one.keys()
        for name, values in one.items():
            assert two[name] == pytest.approx(values, abs=2e-3), (zero, name)


def test_a_kill_changes_no_byte(tmp_path: Path) -> None:
    files = []
    for name in ("straight", "killed"):
        arguments = job(tmp_path / name, "", 0, checkpoint_every=2)
        if name == "killed":
            for p in ranks.start(__file__, 2, json.dumps(arguments), W2S_TEST_KILL="1"):
                p.communicate(timeout=300)
                assert p.returncode
        ranks.run(__file__, 2, arguments)
        students = students_of(tmp_path / name)
        files.append({k: (v / "model.safetensors").read_bytes() for k, v in students.items()})
    assert len(files[0]) == len(METHODS) and files[0] == files[1]


def main(args: list[str]) -> int:
    if os.environ["RANK"] == "0" and os.environ.get("W2S_TEST_KILL"):
        _kill_at_the_second_checkpoint()
    return cli.main(args)


def _kill_at_the_second_checkpoint() -> None:
    save, steps = checkpoint.save, []

    def save_and_die(directory: Path, step: int, *arguments: Any) -> None:
        save(directory, step, *arguments)
        if "ExplicitConflict" in arguments[2]["loss"]:
            steps.append(step)
            if len(steps) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save = save_and_die


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
