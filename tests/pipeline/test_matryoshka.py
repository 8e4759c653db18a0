"""Nested heads in a run: which prefix predicts, what is stored, and plans that do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from helpers.generation_cases import checkpoint
from helpers.toy_run import config
from safetensors.torch import load_file

from w2s_fast.cli import main as cli
from w2s_fast.config import to_yaml
from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.losses.nested import Nested
from w2s_fast.methods import Plan, make_steps, student_nodes
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import LABELS, MODEL, TEST, read_probs
from w2s_fast.pipeline.context import load_data
from w2s_fast.tasks.datasets.agreement import tokenizer
from w2s_fast.training import TrainConfig, encode, predict, train

METHOD = "matryoshka:prefixes=0.25+0.5+1,weights=0.5+1+2,predict=0.5"
TRAIN = {"epochs": 2, "lr": 0.01, "batch_size": 16}


def _folder(results: dict[str, Any], out: Path, stage: str) -> Path:
    return out / "cache" / results["provenance"]["stages"][stage]["folder"]


@pytest.mark.parametrize("loss", ["xent", "logconf"])
def test_the_run_is_the_training_of_the_sum(loss: str, tmp_path: Path) -> None:
    """With a batch threshold of each prefix, exact over micro-batches."""
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    train_cfg = {**TRAIN, "micro_batch_size": 6}
    cfg = config(tmp_path, student={"source": source}, methods=[METHOD], losses=[loss],
                 student_train=train_cfg)  # fmt: skip
    results = run(cfg)
    weights = load_file(_folder(results, tmp_path, f"student/0/{METHOD}+{loss}") / MODEL)
    assert not weights["head.weight"][:, 8:].any() and weights["head.weight"][:, :8].any()
    data = load_data(cfg.task, 0)
    labels = read_probs(_folder(results, tmp_path, "labels/0") / LABELS, data.transfer.ids, 2)
    model: Any = build_model(
        ModelConfig(source), 2, tokenizer(), 0, prefixes=(0.25, 0.5, 1.0), prefix=0.5
    )
    rows = encode(tokenizer(), data.transfer.inputs)
    nested = Nested(loss=make_loss(loss), weights=(0.5, 1.0, 2.0))
    train(model, rows, labels, nested, TrainConfig(**TRAIN), 0)
    probs = predict(model, encode(tokenizer(), data.test.inputs))
    stage = _folder(results, tmp_path, f"student/0/{METHOD}+{loss}")
    stored = read_probs(stage / TEST, data.test.ids, 2)
    assert np.abs(probs - stored).max() < 1e-4 and np.ptp(stored) > 0.05
    # A plain model with the stored weights predicts the same.
    plain: Any = build_model(ModelConfig(source), 2, tokenizer(), 0)
    plain.load_state_dict(weights)
    again = predict(plain, encode(tokenizer(), data.test.inputs))
    assert np.abs(again - stored).max() < 1e-5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("matryoshka:prefixes=0.5+0.25", "expected rising shares in"),
        ("matryoshka:prefixes=0.5+2,predict=0.5", "expected rising shares in"),
        ("matryoshka:prefixes=0+1", "expected rising shares in"),
        ("matryoshka:prefixes=a", "prefixes is 'a'; expected numbers joined by"),
        ("matryoshka:predict=0.3", "predict is 0.3; expected one of the prefixes"),
        ("matryoshka:prefixes=0.5+1,weights=1", "expected 2 numbers of at least 0"),
        ("matryoshka:prefixes=0.5+1,weights=1+0", "the last above 0"),
        ("probe|matryoshka", "a method before it freezes it"),
        ("matryoshka|projection_head", "without probe and matryoshka"),
    ],
)
def test_plans_that_do_not_fit_are_refused(spec: str, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        student_nodes(make_steps(spec), Plan())


def test_a_moving_average_has_one_threshold(tmp_path: Path) -> None:
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    changes: dict[str, Any] = {"student_train": {**TRAIN, "threshold_scope": "ema"}}
    with pytest.raises(W2SError, match="has a threshold for each prefix"):
        run(config(tmp_path, methods=[METHOD], student={"source": source}, **changes))


@pytest.mark.slow
@pytest.mark.dist
def test_as_by_one_process(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    found = {}
    for size, zero in ((1, 0), *((2, z) for z in ranks.ZERO_STAGES[1])):
        out = tmp_path / f"{size}-{zero}"
        out.mkdir()
        fields = {**TRAIN, "zero_stage": zero, "timeout_s": 120}
        cfg = config(out, student={"source": source}, methods=[METHOD], losses=["logconf"],
                     student_train=fields)  # fmt: skip
        (out / "run.yaml").write_text(to_yaml(cfg))
        ranks.run(__file__, size, ["run", "--config", str(out / "run.yaml"), "--quiet"])
        results = json.loads((out / "results.json").read_text())
        folder = _folder(results, out, f"student/0/{METHOD}+logconf")
        found[size, zero] = read_probs(folder / TEST, load_data(cfg.task, 0).test.ids, 2)
        assert not load_file(folder / MODEL)["head.weight"][:, 8:].any()
    one = found.pop((1, 0))
    assert np.ptp(one) > 0.05
    for place, probs in found.items():
        assert np.abs(probs - one).max() < 2e-3, place


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
