"""Low precision in checkpoints: the loss scale of fp16, the steps that it skipped, and bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import ranks, sharded_training
from helpers.sharded_training import RECIPE
from safetensors.torch import load_file

from w2s_fast.training.checkpoint import finished

pytest.importorskip("deepspeed")
STOPS = (1, 3, 6, 9)  # before the first step that is not skipped, and after


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("size", [1, 2])
def test_resume_is_the_straight_run_from_any_step(size: int, tmp_path: Path) -> None:
    """The scale begins too high, falls at once, and rises every second step until one overflows."""
    settings = {"initial_scale_power": 22, "hysteresis": 2, "loss_scale_window": 2}
    (tmp_path / "fp16.json").write_text(json.dumps({"fp16": settings}))
    jobs: list[dict[str, Any]] = []
    for zero in (1, 2, 3):
        job = {
            "zero_stage": zero, "dtype": "float16", "spec": "xent", "batch_size": 8, "epochs": 2,
            "checkpoint_every": 1, "deepspeed_config": str(tmp_path / "fp16.json"),
        }  # fmt: skip
        jobs.append(job)
        for stop in STOPS:
            place = {**job, "directory": str(tmp_path / f"{zero}-{stop}")}
            jobs += [{**place, "stop": stop}, place]
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, size, {"fits": jobs, "out": str(out)})
    for job, got in zip(jobs, json.loads(out.read_text()), strict=True):
        if "directory" not in job:
            straight = got
        elif "stop" not in job:
            assert got["losses"] == straight["losses"], job
            assert got["weights"] == straight["weights"], job
            updates, scale = _state(finished(Path(job["directory"]))[-1])
            assert 0 < updates < len(got["losses"]) - 2 and scale < 2**21


@pytest.mark.slow
@pytest.mark.dist
def test_bf16_resumes_at_every_stage(tmp_path: Path) -> None:
    """DeepSpeed has another optimizer for bf16 at stage 1, without a loss scale."""
    jobs: list[dict[str, Any]] = []
    for zero in (1, 2, 3):
        job = {**RECIPE, "zero_stage": zero, "dtype": "bfloat16", "spec": "xent"}
        place = {**job, "directory": str(tmp_path / str(zero))}
        jobs += [job, {**place, "stop": 5}, place]
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    found = json.loads(out.read_text())
    assert found[::3] == found[2::3]


def _state(folder: Path) -> tuple[float, float]:
    """Return the number of updates and the loss scale in a checkpoint."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return float(tensors["optimizer.step.head.weight"]), float(tensors["optimizer.loss_scale"][0])
