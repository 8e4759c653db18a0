"""Students trained on pairs, and policies, by several processes and after a kill."""

from __future__ import annotations

import dataclasses
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
from helpers.text_runs import policy_run, text_run

from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.pipeline.artifacts import PAIR_LOGPROB
from w2s_fast.pipeline.stages import samples
from w2s_fast.training import checkpoint

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
CONTRAST = "helpers.text_methods:Contrast"


def job(folder: Path, cfg: RunConfig, zero: int = 0, **train: Any) -> list[str]:
    """Write a run with students of a ZeRO stage, and return the arguments that start it."""
    students = dataclasses.replace(cfg.student_train, zero_stage=zero, **train)
    path = folder / "run.yaml"
    path.write_text(to_yaml(dataclasses.replace(cfg, student_train=students)))
    return ["run", "--config", str(path), "--quiet"]


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Return log-probabilities of pairs, losses and predictions of the students, by stage."""
    out = folder / "out"
    stages = json.loads((out / "results.json").read_text())["provenance"]["stages"]
    arrays: dict[str, np.ndarray] = {}
    for name, stage in stages.items():
        path = out / "cache" / stage["folder"]
        if (path / PAIR_LOGPROB).exists():
            arrays[name] = np.load(path / PAIR_LOGPROB)
        if name.startswith("student/"):
            arrays[f"{name} losses"] = np.array(
                json.loads((path / "log.json").read_text())["losses"]
            )
            table = pq.read_table(path / "test.parquet")
            if "probs" in table.column_names:
                arrays[f"{name} probs"] = np.array(table["probs"].to_pylist())
    return arrays


@pytest.mark.parametrize("kind", ["text", "policy"])
def test_two_processes_at_every_zero_stage_equal_one(kind: str, tmp_path: Path) -> None:
    def run(name: str, n: int, zero: int) -> dict[str, np.ndarray]:
        folder = tmp_path / name
        folder.mkdir()
        cfg = (
            text_run(folder, [f"{CONTRAST}:loss=dpo_norm"])
            if kind == "text"
            else policy_run(folder, "dpo:beta=0.5", losses=["logconf"])
        )
        ranks.run(__file__, n, job(folder, cfg, zero))
        return arrays_of(folder)

    one = run("one", 1, 0)
    assert len(one) >= 3
    for zero in range(4):
        two = run(f"two-{zero}", 2, zero)
        assert two.keys() == one.keys()
        for name, values in one.items():
            assert two[name] == pytest.approx(values, abs=2e-3), (zero, name)


@pytest.mark.parametrize("where", ["samples", "student"])
def test_a_kill_changes_no_byte(where: str, tmp_path: Path) -> None:
    """Killed after the first part of the samples, or at a checkpoint of the pairs, and resumed."""
    files = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        arguments = job(folder, text_run(folder, [CONTRAST]), checkpoint_every=2)
        if name == "killed":
            for p in ranks.start(__file__, 2, json.dumps(arguments), W2S_TEST_KILL=where):
                p.communicate(timeout=300)
                assert p.returncode
        ranks.run(__file__, 2, arguments)
        cache = folder / "out" / "cache"
        patterns = ("samples-*/samples/*", "text_labels-*/labels/*", "student-*/model.safetensors")
        found = {p.relative_to(cache): p for pattern in patterns for p in cache.glob(pattern)}
        files.append({str(name): path.read_bytes() for name, path in found.items()})
    # Two students: of the weak labels, and of the pairs.
    assert len([name for name in files[0] if name.startswith("student-")]) == 2
    assert files[0] == files[1]


def main(args: list[str]) -> int:
    if os.environ["RANK"] == "0" and (where := os.environ.get("W2S_TEST_KILL")):
        _kill_at(where)
    samples.PART_ROWS = 20
    return cli.main(args)


def _kill_at(where: str) -> None:
    """Kill this process at the second part of samples, or the second checkpoint of the pairs."""
    if where == "samples":
        original, seen = samples.write_samples, []

        def write(*arguments: Any) -> None:
            seen.append(arguments)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*arguments)

        samples.write_samples = write
        return
    save, steps = checkpoint.save, []

    def save_and_die(directory: Path, step: int, *arguments: Any) -> None:
        save(directory, step, *arguments)
        identity = arguments[2]
        if "PairLoss" in identity["loss"]:
            steps.append(step)
            if len(steps) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save = save_and_die


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
