"""A data file is read once for all seeds of a run, and again by the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.task_data import numbered_rows, write_rows

from w2s_fast.config import RunConfig, from_dict
from w2s_fast.pipeline.experiment import open_session
from w2s_fast.sweeps import SweepConfig
from w2s_fast.sweeps.run_sweep import prepare
from w2s_fast.tasks import _files, reading_once
from w2s_fast.tasks._read_once import once

SIZES = {"n_weak": 10, "n_transfer": 12, "n_test": 8}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, one entry per reading."""
    names: list[str] = []
    check = _files.check_file

    def count(path: Path) -> None:
        names.append(path.name)
        check(path)

    monkeypatch.setattr(_files, "check_file", count)
    return names


def local_run(tmp_path: Path, name: str, **changes: Any) -> RunConfig:
    path = write_rows(tmp_path / name, numbered_rows(80))
    test = write_rows(tmp_path / f"test-{name}", numbered_rows(80, start=100))
    task = {"name": "local", "path": str(path), "test_path": str(test), **SIZES}
    model = {"source": str(_checkpoint(tmp_path / "model"))}
    return from_dict({
        "task": task, "weak": model, "student": model, "seeds": [0, 1, 2],
        "output_dir": str(tmp_path / "out"), **changes,
    })  # fmt: skip


def _checkpoint(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaModel

    from w2s_fast.tasks.datasets import agreement

    tokenizer = agreement.tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    LlamaModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_three_seeds_read_a_file_once(tmp_path: Path, reads: list[str], name: str) -> None:
    cfg = local_run(tmp_path, name)
    with open_session(cfg, quiet=True) as session:
        assert reads == [name, f"test-{name}"]
        texts = [set(session.data[s].weak.texts) for s in cfg.seeds]
        assert texts[0] != texts[1]
    with open_session(cfg, quiet=True):
        assert len(reads) == 4  # a second run in the process reads again


def test_the_cells_of_a_sweep_read_a_file_once(tmp_path: Path, reads: list[str]) -> None:
    base = local_run(tmp_path, "rows.csv")
    tasks = (f"local:path={base.task.path}", f"local:path={base.task.path},n_test=6")
    model = base.student.source
    prepare(SweepConfig(run=RunConfig(task=base.task, seeds=(0, 1)), tasks=tasks,
                        weak_models=("bow",), student_models=(model,)))  # fmt: skip
    assert sorted(reads) == ["rows.csv", "test-rows.csv"]


def test_nothing_is_kept_outside_of_the_block() -> None:
    calls = []

    @once
    def add(one: int, two: int = 0) -> int:
        calls.append((one, two))
        return one + two

    assert add(1) == add(1) == 1 and len(calls) == 2
    with reading_once():
        assert add(1) == add(1) == 1 and add(1, two=2) == add(1, two=2) == 3
        assert calls[2:] == [(1, 0), (1, 2)]
    add(1)
    assert len(calls) == 5
