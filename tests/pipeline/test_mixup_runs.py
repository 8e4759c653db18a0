"""Mixup in a run: of one student by its method, of all models by a setting, in stored stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from helpers.toy_run import config
from safetensors.torch import load_file

from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import MODEL
from w2s_fast.pipeline.job_identity import config_slice
from w2s_fast.pipeline.jobs import plan_jobs


def test_the_method_mixes_for_its_student_alone(tmp_path: Path) -> None:
    by_method = run(config(tmp_path / "method", methods=["naive", "mixup:alpha=0.4"]))
    train = {"epochs": 2, "lr": 0.1, "batch_size": 16, "mixup": 0.4}
    by_setting = run(config(tmp_path / "setting", student_train=train))

    def weights(results: dict, folder: str, stage: str) -> torch.Tensor:
        stored = results["provenance"]["stages"][stage]["folder"]
        return load_file(tmp_path / folder / "cache" / stored / MODEL)["weight"]

    mixed = weights(by_method, "method", "student/0/mixup:alpha=0.4+xent")
    plain = weights(by_method, "method", "student/0/xent")
    assert torch.equal(mixed, weights(by_setting, "setting", "student/0/xent"))
    assert (mixed - plain).abs().max() > 1e-3
    ceilings = [
        weights(r, f, "ceiling/0") for r, f in ((by_method, "method"), (by_setting, "setting"))
    ]
    assert not torch.equal(*ceilings)


def test_stages_without_mixup_keep_their_place_in_the_store() -> None:
    cfg = config(Path("unused"))
    (student,) = [job for job in plan_jobs(cfg).jobs if job.stage == "student"]
    assert "mixup" not in config_slice(cfg, student, 2)["train"]
    mixing = replace(cfg, student_train=replace(cfg.student_train, mixup=0.1))
    assert config_slice(mixing, student, 2)["train"]["mixup"] == 0.1
