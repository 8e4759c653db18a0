"""Methods that change what steps learn: two processes at the ZeRO stages train as one does."""

from __future__ import annotations

import dataclasses
import json
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
from w2s_fast.tasks import TaskConfig
from w2s_fast.tasks.datasets.agreement import tokenizer

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
METHODS = (
    "nested_dropout:sigma=20|co_teaching:forget=0.4",
    "mean_teacher:decay=0.8",
    "self_training:start=0.3,refresh=2,threshold=0.0",
)


def config(folder: Path, source: str, zero: int = 0) -> Path:
    """Write a run of seconds and return its file; the student is a language model."""
    base = RunConfig()
    cfg = dataclasses.replace(
        base,
        task=TaskConfig(name="agreement", n_weak=64, n_transfer=64, n_test=20),
        student=ModelConfig(source, head_init="small"),
        weak=ModelConfig("scratch", hidden=16, layers=1, heads=2),
        weak_train=dataclasses.replace(base.weak_train, epochs=1, timeout_s=120),
        student_train=dataclasses.replace(
            base.student_train, epochs=2, batch_size=16, timeout_s=120, zero_stage=zero
        ),
        methods=METHODS,
        losses=("xent",),
        seeds=(0,),
        output_dir=str(folder / "out"),
        workers=1,
        threads=1,
    )
    path = folder / "run.yaml"
    path.write_text(to_yaml(cfg))
    return path


def students_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the losses of the students and their predictions of the test items, by name."""
    out = folder / "out"
    stages = json.loads((out / "results.json").read_text())["provenance"]["stages"]
    arrays = {}
    for name, stage in stages.items():
        if name.startswith("student/"):
            path = out / "cache" / stage["folder"]
            log = json.loads((path / "log.json").read_text())
            arrays[f"{name} losses"] = np.array(log["losses"])
            arrays[f"{name} width"] = np.array(log.get("head_width", 0))
            arrays[name] = np.array(pq.read_table(path / "test.parquet")["probs"].to_pylist())
    return arrays


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, np.ndarray]]:
    """Return the student's checkpoint, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("one")
    source = str(checkpoint("llama", folder / "llama", tokenizer()))
    ranks.run(__file__, 1, ["run", "--config", str(config(folder, source)), "--quiet"])
    return source, students_of(folder)


@pytest.mark.parametrize("zero", ranks.ZERO_STAGES[1])
def test_two_processes_equal_one(
    zero: int, one_process: tuple[str, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    source, one = one_process
    assert len(one) == 3 * len(METHODS)
    ranks.run(__file__, 2, ["run", "--config", str(config(tmp_path, source, zero)), "--quiet"])
    two = students_of(tmp_path)
    assert two.keys() == one.keys()
    for name, values in one.items():
        assert two[name] == pytest.approx(values, abs=2e-3), name


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
