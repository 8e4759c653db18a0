"""Soups and interpolation by several processes, at every ZeRO stage: as by one process."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.generation_cases import checkpoint
from safetensors.torch import load_file

from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.models import ModelConfig
from w2s_fast.pipeline.artifacts import MODEL, SWEEP
from w2s_fast.tasks import TaskConfig
from w2s_fast.tasks.datasets.agreement import tokenizer

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.dist]
GREEDY, SWEPT = "greedy_soup:members=2,holdout=0.3", "interpolate:points=4,holdout=0.3"


def _config(folder: Path, source: str, zero: int, lora: int) -> Path:
    base = RunConfig()
    train = {"epochs": 1, "timeout_s": 120, "zero_stage": zero, "lr": 1e-2 if lora else 1e-3}
    cfg = dataclasses.replace(
        base,
        task=TaskConfig(name="agreement", n_weak=60, n_transfer=120, n_test=20),
        student=ModelConfig(source, lora_rank=lora),
        weak=ModelConfig("bow"),
        weak_train=dataclasses.replace(base.weak_train, lr=0.1, timeout_s=120),
        student_train=dataclasses.replace(base.student_train, **train),
        methods=("soup:members=2", GREEDY, SWEPT),
        losses=("xent",),
        seeds=(0,),
        output_dir=str(folder / "out"),
        workers=1,
        threads=1,
    )
    path = folder / "run.yaml"
    path.write_text(to_yaml(cfg))
    return path


def _results(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    out = folder / "out"
    results = json.loads((out / "results.json").read_text())
    stages = results["provenance"]["stages"]
    return results, {name: out / "cache" / s["folder"] for name, s in stages.items()}


@pytest.mark.parametrize(
    ("lora", "stages"), [(0, ranks.ZERO_STAGES[1]), (2, ranks.ZERO_STAGES[2])], ids=["all", "lora"]
)
def test_as_by_one_process(lora: int, stages: tuple[int, ...], tmp_path: Path) -> None:
    if lora:
        pytest.importorskip("peft")
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    found = {}
    for name, size, zero in (("one", 1, 0), *((f"zero{z}", 2, z) for z in stages)):
        folder = tmp_path / name
        folder.mkdir()
        path = _config(folder, source, zero, lora)
        ranks.run(__file__, size, ["run", "--config", str(path), "--quiet"])
        found[name] = _results(folder)
    one, folders = found.pop("one")
    merged = {row["name"]: row for row in one["merged"]}
    assert [row["how"] for row in merged.values()] == ["soup", "greedy_soup", "interpolation"]
    for several, (results, own) in found.items():
        for row in results["merged"]:
            want = merged[row["name"]]
            for key in ("members", "chosen", "alpha", "member_agreement", "agreement", "accuracy"):
                assert row.get(key) == want.get(key), (several, row["name"], key)
            stage = f"student/0/{row['name']}"
            weights = load_file(own[stage] / MODEL)
            for key, t in load_file(folders[stage] / MODEL).items():
                torch.testing.assert_close(weights[key], t, rtol=1e-3, atol=1e-4)
        swept, want = (np.load(f[f"student/0/{SWEPT}+xent"] / SWEEP) for f in (own, folders))
        assert np.abs(swept - want).max() < 1e-3
        assert np.abs(want[0] - want[-1]).max() > 1e-2


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
