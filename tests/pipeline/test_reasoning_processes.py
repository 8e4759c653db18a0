"""Both stages of reasoning in a run of several processes, and after kills."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from helpers.reasoning_runs import STAGE_ONE, STAGE_TWO, language_model, reasoning_run

from w2s_fast.cli import main as cli
from w2s_fast.config import to_yaml
from w2s_fast.pipeline.artifacts import SAMPLES
from w2s_fast.pipeline.stages import samples
from w2s_fast.training import checkpoint

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
    cfg = reasoning_run(folder, model, [BOTH])
    students = dataclasses.replace(cfg.student_train, zero_stage=zero)
    path = folder / "run.yaml"
    path.write_text(to_yaml(dataclasses.replace(cfg, student_train=students)))
    return ["run", "--config", str(path), "--quiet"]


def read(folder: Path) -> Finished:
    """Return reports, samples by stage, and the losses of every student."""
    out = folder / "out"
    results = json.loads((out / "results.json").read_text())
    texts, losses = {}, {}
    for name, stage in results["provenance"]["stages"].items():
        path = out / "cache" / stage["folder"]
        if (path / SAMPLES).exists():
            texts[name] = [part.read_bytes() for part in sorted((path / SAMPLES).iterdir())]
        if name.startswith("student/"):
            losses[name] = np.array(json.loads((path / "log.json").read_text())["losses"])
    return results["text_labels"], texts, losses


@pytest.fixture(scope="module")
def one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("one") / "run"
    ranks.run(__file__, 1, job(folder, model, 0))
    return read(folder)


@pytest.mark.parametrize("zero", range(4))
def test_two_processes_equal_one(zero: int, one: Finished, model: Path, tmp_path: Path) -> None:
    """The same texts and selections, hence students; losses differ by rounding."""
    reports, texts, losses = one
    assert len(texts) == 4 and len(losses) == 4 and len(reports) == 4
    ranks.run(__file__, 2, job(tmp_path / "two", model, zero))
    other = read(tmp_path / "two")
    assert other[0] == reports and other[1] == texts
    for name, values in losses.items():
        assert other[2][name] == pytest.approx(values, abs=2e-3), name


@pytest.mark.parametrize("where", ["samples", "student"])
def test_a_kill_changes_no_byte(where: str, model: Path, tmp_path: Path) -> None:
    """Killed in the samples of stage II, or at a checkpoint of its student, and resumed."""
    files = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        arguments = job(folder, model, 0)
        if name == "killed":
            for p in ranks.start(__file__, 2, json.dumps(arguments), W2S_TEST_KILL=where):
                p.communicate(timeout=300)
                assert p.returncode
            assert not (folder / "out" / "results.json").exists()
        ranks.run(__file__, 2, arguments)
        cache = folder / "out" / "cache"
        patterns = ("samples-*/samples/*", "text_labels-*/labels/*", "student-*/model.safetensors")
        found = {p.relative_to(cache): p for pattern in patterns for p in cache.glob(pattern)}
        files.append({str(name): path.read_bytes() for name, path in found.items()})
    assert len([name for name in files[0] if name.startswith("student-")]) == 4
    assert files[0] == files[1]


def main(args: list[str]) -> int:
    if os.environ["RANK"] == "0" and (where := os.environ.get("W2S_TEST_KILL")):
        _kill_at(where)
    samples.PART_ROWS = 20
    return cli.main(args)


def _kill_at(where: str) -> None:
    """Kill this process at the second part of six samples, or the second checkpoint of pairs."""
    if where == "samples":
        original, seen = samples.write_samples, []

        def write(path: Path, ids: Any, drawn: Any) -> None:
            seen.append(len(drawn[0]) == 6)
            if sum(seen) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            original(path, ids, drawn)

        samples.write_samples = write
        return
    save, steps = checkpoint.save, []

    def save_and_die(directory: Path, step: int, *arguments: Any) -> None:
        save(directory, step, *arguments)
        if "PairLoss" in arguments[2]["loss"]:
            steps.append(step)
            if len(steps) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save = save_and_die


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
