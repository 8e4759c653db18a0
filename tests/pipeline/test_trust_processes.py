"""Trust models and learned teacher weights by several processes, and after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ranks
from helpers.generation_cases import checkpoint

from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.models import ModelConfig
from w2s_fast.pipeline.artifacts import TRUST
from w2s_fast.pipeline.stages import trust
from w2s_fast.tasks import ShortcutConfig, TaskConfig
from w2s_fast.tasks.datasets.agreement import tokenizer

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
METHODS = (
    "trust:layer=last",
    "selective:layer=last,threshold=0.5",
    "teacher_weights:members=2,rate=0.5",
)


def config(folder: Path, source: str, zero: int = 0, methods: tuple[str, ...] = METHODS) -> Path:
    """Write a run of seconds and return its file; the student is a language model."""
    base = RunConfig()
    cfg = dataclasses.replace(
        base,
        # The shortcut is in the hidden states of any student, so there is something to learn.
        task=TaskConfig(
            name="agreement",
            n_weak=200,
            n_transfer=64,
            n_test=20,
            shortcut=ShortcutConfig(availability=1),
        ),
        student=ModelConfig(source),
        weak=ModelConfig("scratch", hidden=16, layers=1, heads=2),
        weak_train=dataclasses.replace(base.weak_train, epochs=1, timeout_s=120, zero_stage=zero),
        student_train=dataclasses.replace(
            base.student_train, epochs=1, timeout_s=120, zero_stage=zero
        ),
        calibration_folds=2,
        methods=methods,
        losses=("xent",),
        seeds=(0,),
        output_dir=str(folder / "out"),
        workers=1,
        threads=1,
    )
    path = folder / "run.yaml"
    path.write_text(to_yaml(cfg))
    return path


def results_of(folder: Path) -> dict[str, np.ndarray]:
    """Return trust, row weights and labels of the run, and the students' predictions, by name."""
    out = folder / "out"
    stages = json.loads((out / "results.json").read_text())["provenance"]["stages"]
    arrays = {}
    for name, stage in stages.items():
        path = out / "cache" / stage["folder"]
        if name.startswith("trust/"):
            arrays[name] = np.load(path / TRUST)
        if name.startswith("apply/"):
            table = pq.read_table(path / "labels")
            arrays[name] = np.array(table["probs"].to_pylist())
            if "weight" in table.column_names:
                arrays[f"{name} weight"] = table["weight"].to_numpy()
        if name.startswith("student/"):
            arrays[name] = np.array(pq.read_table(path / "test.parquet")["probs"].to_pylist())
    return arrays


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, np.ndarray]]:
    """Return the student's checkpoint, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("one")
    source = str(checkpoint("llama", folder / "llama", tokenizer()))
    ranks.run(__file__, 1, ["run", "--config", str(config(folder, source)), "--quiet"])
    return source, results_of(folder)


@pytest.mark.parametrize("zero", ranks.ZERO_STAGES[2])
def test_two_processes_equal_one(
    zero: int, one_process: tuple[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    source, one = one_process
    learned = [np.ptp(values) for name, values in one.items() if name.startswith("trust/")]
    assert len(learned) == 2 and min(learned) > 0.05, "nothing was learned"
    ranks.run(__file__, 2, ["run", "--config", str(config(tmp_path, source, zero)), "--quiet"])
    two = results_of(tmp_path)
    assert two.keys() == one.keys()
    for name, values in one.items():
        assert two[name] == pytest.approx(values, abs=2e-3), name


def test_a_kill_inside_the_stage_changes_no_byte(tmp_path: Path) -> None:
    """Killed between the two files of the stage, on two processes, and resumed."""
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    files = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        job = ["run", "--config", str(config(folder, source, methods=("trust",))), "--quiet"]
        if name == "killed":
            for p in ranks.start(__file__, 2, json.dumps(job), W2S_TEST_KILL="1"):
                p.communicate(timeout=300)
                assert p.returncode
            cache = folder / "out" / "cache"
            assert not list(cache.glob("trust-*")) and list(cache.glob(".trust-*"))
        ranks.run(__file__, 2, job)
        cache = folder / "out" / "cache"
        patterns = ("trust-*/trust*", "apply-*/labels/*", "student-*/test.parquet")
        found = {p.relative_to(cache): p for pattern in patterns for p in cache.glob(pattern)}
        files.append({name: path.read_bytes() for name, path in found.items()})
    assert len(files[0]) == 4 and files[0] == files[1]


def main(args: list[str]) -> int:
    if os.environ.get("W2S_TEST_KILL") and os.environ["RANK"] == "0":

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        trust.write_json = die  # type: ignore[assignment]
    return cli.main(args)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
