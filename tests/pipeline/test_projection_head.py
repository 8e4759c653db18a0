"""Projection heads in a run: what is trained, what is dropped, and what the last head reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.generation_cases import checkpoint
from helpers.toy_run import config
from safetensors.torch import load_file

from w2s_fast.cli import main as cli
from w2s_fast.config import to_yaml
from w2s_fast.errors import W2SError
from w2s_fast.methods import Plan, make_steps, student_nodes
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import MODEL, TEST, read_probs
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.export import export
from w2s_fast.tasks.datasets.agreement import tokenizer
from w2s_fast.training import encode, predict

METHOD = "projection_head:width=12"
NAME = f"student/0/{METHOD}+xent"
STARTED = "prototype_head:train=true"
TRAIN = {"epochs": 2, "lr": 0.01, "batch_size": 16}


def _folder(results: dict[str, Any], out: Path, stage: str) -> Path:
    return out / "cache" / results["provenance"]["stages"][stage]["folder"]


def test_the_network_by_hand() -> None:
    cfg = ModelConfig("scratch", hidden=16, heads=2, head_init="small")
    model: Any = build_model(cfg, 2, tokenizer(), 0, projection=5)
    ids = torch.arange(2, 14).view(2, 6)
    x = model.base(input_ids=ids).last_hidden_state[:, -1]
    p = model.projection
    hidden = torch.clamp(x @ p.lower.weight.T + p.lower.bias, min=0) @ p.upper.weight.T
    expected = (hidden + p.upper.bias) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(ids, torch.ones_like(ids)), expected)
    assert p.lower.weight.shape == (5, 16) and model.head.weight.shape == (2, 5)
    assert build_model(cfg, 2, tokenizer(), 0).projection is None


@pytest.mark.parametrize("lora", [0, 2])
def test_a_head_on_the_features_before_the_projection(lora: int, tmp_path: Path) -> None:
    if lora:
        pytest.importorskip("peft")
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    changes: dict[str, Any] = {
        "student": {"source": source, "lora_rank": lora}, "methods": ["naive", METHOD],
        "student_train": TRAIN,
    }  # fmt: skip
    cfg = config(tmp_path, **changes)
    results = run(cfg)
    stages = results["provenance"]["stages"]
    (first,) = [n for n in stages if n.startswith(f"{NAME}/")]
    backbone = load_file(_folder(results, tmp_path, first) / MODEL)
    assert backbone["projection.lower.weight"].shape == (12, 16)
    head = load_file(_folder(results, tmp_path, NAME) / MODEL)
    assert set(head) == {"head.weight", "head.bias"} and head["head.weight"].shape == (2, 16)
    # The exported student: the trained backbone, and the head without a projection.
    export(cfg, NAME, tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    start = load_file(Path(source) / "model.safetensors")
    key = "layers.1.mlp.down_proj.weight"
    assert (exported[key] - start[f"model.{key}"]).abs().max() > 1e-3
    if not lora:
        assert torch.equal(exported[key], backbone[f"base.{key}"])
    model: Any = build_model(ModelConfig(str(tmp_path / "exported")), 2, tokenizer(), 0)
    model.head.load_state_dict(load_file(tmp_path / "exported" / "head.safetensors"))
    test = load_data(cfg.task, 0).test
    got = predict(model, encode(tokenizer(), test.inputs))
    stored = read_probs(_folder(results, tmp_path, NAME) / TEST, test.ids, 2)
    assert np.abs(got - stored).max() < 2e-2  # cached features are bf16
    features = [n for n in stages if n.startswith(f"features/0/{METHOD}")]
    assert len(features) == 2  # of the transfer and the test split
    with pytest.raises(W2SError, match="the model has a projection before its head"):
        export(cfg, first, tmp_path / "never")


def test_plans_that_do_not_fit_are_refused() -> None:
    for spec in ("probe|projection_head", "soup|projection_head"):
        with pytest.raises(W2SError, match="trains a backbone, and a method before it freezes it"):
            student_nodes(make_steps(spec), Plan())
    with pytest.raises(W2SError, match="width"):
        make_steps("projection_head:width=0")
    student, ceiling = student_nodes(make_steps("projection_head|early_stop"), Plan())
    assert dict(student.settings)["keep"] == "weak" and "start" not in dict(ceiling.needs)


def test_bags_of_words_have_no_features(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match="a method needs hidden states of the student"):
        run(config(tmp_path, methods=[METHOD]))


@pytest.mark.slow
@pytest.mark.dist
def test_as_by_one_process(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    found = {}
    for size, zero in ((1, 0), *((2, z) for z in ranks.ZERO_STAGES[1])):
        out = tmp_path / f"{size}-{zero}"
        out.mkdir()
        train = {**TRAIN, "zero_stage": zero, "timeout_s": 120}
        methods = [METHOD, STARTED]
        cfg = config(out, student={"source": source}, methods=methods, student_train=train)
        (out / "run.yaml").write_text(to_yaml(cfg))
        ranks.run(__file__, size, ["run", "--config", str(out / "run.yaml"), "--quiet"])
        results = json.loads((out / "results.json").read_text())
        ids = load_data(cfg.task, 0).test.ids
        found[size, zero] = [
            read_probs(_folder(results, out, name) / TEST, ids, 2)
            for name in (NAME, f"student/0/{STARTED}+xent")
        ]
    one = found.pop((1, 0))
    assert min(map(np.ptp, one)) > 0.05
    for place, both in found.items():
        for probs, want in zip(both, one, strict=True):
            assert np.abs(probs - want).max() < 2e-2, place  # bf16 features of close weights


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
