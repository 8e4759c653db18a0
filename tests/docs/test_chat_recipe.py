"""The published target of docs/evidence.md: the recipe, its documented cost, and its toy twin."""

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

RECIPE, TWIN = ROOT / "examples/chat_w2s.yaml", ROOT / "examples/chat_w2s_toy.yaml"
# Settings of the twin that may differ: its models and data are small.
SIZES = {"lr", "max_length", "micro_batch_size"}


def config(path: Path) -> RunConfig:
    return load(RunConfig, paths=[path])


def qwen3_4b(folder: Path) -> Path:
    """The config.json of Qwen3-4B-Base, without weights."""
    values = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2560,
        "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "tie_word_embeddings": True, "max_position_embeddings": 32768, "hidden_act": "silu",
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


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
    model = qwen3_4b(tmp_path / "model")
    options = ["--gpus", "1x1", "--config", str(RECIPE), "--model", str(model), "--tokens", "1024"]
    assert main(["plan", *options]) == 0
    printed = capsys.readouterr().out
    page = (ROOT / "docs/evidence.md").read_text()
    (block,) = re.findall(r"reports:\n\n```text\n(.*?)```", page, re.DOTALL)
    documented = re.findall(r"[\d,]+\.\d+", block)
    assert len(documented) == 8 and set(documented) <= set(re.findall(r"[\d,]+\.\d+", printed))
    cfg = config(RECIPE)
    steps = -(-cfg.task.n_transfer // cfg.student_train.batch_size)
    assert f"An epoch has {steps} steps" in page


def test_the_twin_differs_in_models_and_sizes_alone() -> None:
    recipe, twin = config(RECIPE), config(TWIN)
    for name in ("losses", "methods", "intermediate_models", "weak_calibration"):
        assert getattr(recipe, name) == getattr(twin, name)
    for name in ("weak_train", "student_train"):
        one, other = vars(getattr(recipe, name)), vars(getattr(twin, name))
        assert {key for key in one if one[key] != other[key]} <= SIZES
    assert replace(twin.student, source="x") == replace(recipe.student, source="x")


@pytest.mark.slow
def test_the_twin_runs(tmp_path: Path) -> None:
    few = ["--task.pretrain.steps", "20", "--task.n_transfer", "64", "--task.n_test", "40",
           "--student_train.epochs", "1", "--workers", "1"]  # fmt: skip
    out = tmp_path / "out"
    assert main(["run", "--config", str(TWIN), "--out", str(out), "--quiet", *few]) == 0
    results = json.loads((out / "results.json").read_text())
    names = ["hard_xent", "confident:low=0.25,high=0.75+hard_xent", "elicit+hard_xent"]
    assert [run["name"] for run in results["runs"]] == names and results["gold"] == []
