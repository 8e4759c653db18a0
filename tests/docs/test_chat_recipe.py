"""The published target of docs/evidence.md: the settings of its recipe, and its documented cost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.paths import ROOT

from w2s_fast.cli.main import main
from w2s_fast.cli.parse import load
from w2s_fast.config import RunConfig, validate
from w2s_fast.models import ModelConfig
from w2s_fast.recipes import load_card, run_file

RECIPE = run_file("chat")


def config(path: Path) -> RunConfig:
    return load(RunConfig, paths=[path])


def test_the_recipe_has_the_published_settings(tmp_path: Path) -> None:
    cfg = config(RECIPE)
    for train in (cfg.weak_train, cfg.student_train):
        assert (train.epochs, train.batch_size, train.lr, train.schedule) == (5, 32, 1e-4, "linear")
        assert (train.warmup_frac, train.weight_decay, train.max_length) == (0.1, 0.0, 8192)
    for model in (cfg.weak, cfg.student):  # rank-stabilised LoRA: alpha / sqrt(rank)
        assert model.lora_rank == 32
        assert model.lora_alpha / model.lora_rank == pytest.approx(32 / 32**0.5, rel=1e-3)
    assert cfg.seeds == (42, 43, 44, 45, 46) and cfg.losses == ("hard_xent",)
    there = ModelConfig(str(tmp_path), dtype="bf16", lora_rank=32)
    validate(replace(cfg, weak=there, student=there))


@pytest.mark.slow
def test_the_documented_cost_is_that_of_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(load_card("chat").student_config))
    options = [
        "--gpus",
        "1x1",
        "--config",
        str(RECIPE),
        "--model",
        str(tmp_path),
        "--tokens",
        "1024",
    ]
    assert main(["plan", *options]) == 0
    printed = capsys.readouterr().out
    page = (ROOT / "docs/evidence.md").read_text()
    (block,) = re.findall(r"reports:\n\n```text\n(.*?)```", page, re.DOTALL)
    documented = re.findall(r"[\d,]+\.\d+", block)
    assert len(documented) == 8 and set(documented) <= set(re.findall(r"[\d,]+\.\d+", printed))
    cfg = config(RECIPE)
    steps = -(-cfg.task.n_transfer // cfg.student_train.batch_size)
    assert f"An epoch has {steps} steps" in page
