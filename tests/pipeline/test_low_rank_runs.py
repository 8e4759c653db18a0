"""Low-rank students in a run: distilled without labels, trained as products, exported whole."""

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
from w2s_fast.training import TrainConfig, encode, predict, train

METHOD = "low_rank:share=0.6"
NAME = f"student/0/{METHOD}+xent"
LAYER = "layers.1.mlp.down_proj"
TRAIN = {"epochs": 4, "lr": 0.005, "batch_size": 16}


def _folder(results: dict[str, Any], out: Path, stage: str) -> Path:
    return out / "cache" / results["provenance"]["stages"][stage]["folder"]


def _rank(weight: torch.Tensor) -> int:
    s = torch.linalg.svdvals(weight.double())
    return int((s > 1e-5 * s[0]).sum())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("run")
    source = str(checkpoint("llama", out / "llama", tokenizer()))
    methods = ["naive", METHOD, f"strong_to_strong|{METHOD}"]
    cfg = config(out, student={"source": source}, methods=methods, student_train=TRAIN)
    return cfg, run(cfg), out


def test_the_student_is_trained_as_products(ran: Any) -> None:
    _, results, out = ran
    weights = load_file(_folder(results, out, NAME) / MODEL)
    up, down = (weights[f"base.{LAYER}.{part}"] for part in ("up", "down"))
    assert up.shape == (16, 5) and down.shape == (5, 24)  # 0.6 of 16 x 24, over 16 + 24
    stages = results["provenance"]["stages"]
    ceiling = next(n for n in stages if n.startswith("ceiling/0/low_rank"))
    assert f"base.{LAYER}.up" in load_file(_folder(results, out, ceiling) / MODEL)
    assert f"base.{LAYER}.weight" in load_file(_folder(results, out, "student/0/xent") / MODEL)


def test_distillation_brings_the_states_back(ran: Any) -> None:
    """Of the full model, on the transfer texts: nearer than without it; the weights stay near."""
    cfg, results, out = ran
    stages = results["provenance"]["stages"]
    (name,) = [n for n in stages if n.startswith("compressed/")]
    data = load_data(cfg.task, 0)
    rows = encode(tokenizer(), data.transfer.inputs)
    source = cfg.student.source
    folder = _folder(results, out, name) / "model"

    def states(path: str, share: float = 0.0) -> np.ndarray:
        from w2s_fast.distributed.world import SINGLE_PROCESS
        from w2s_fast.models.low_rank import factorise
        from w2s_fast.probing import hidden_states

        model: Any = build_model(ModelConfig(path), 2, tokenizer(), 0)
        if share:
            factorise(model.base, share, SINGLE_PROCESS)
        return np.asarray(hidden_states(model, rows, "last"))

    full, cut, distilled = states(source), states(source, 0.6), states(str(folder))
    assert ((distilled - full) ** 2).mean() < 0.7 * ((cut - full) ** 2).mean()
    weight = load_file(folder / "model.safetensors")[f"{LAYER}.weight"]
    assert _rank(weight) == 5


def test_the_exported_student_loads_as_any_checkpoint(ran: Any, tmp_path: Path) -> None:
    cfg, results, out = ran
    export(cfg, NAME, tmp_path / "exported")
    weight = load_file(tmp_path / "exported" / "model.safetensors")[f"{LAYER}.weight"]
    assert weight.shape == (16, 24) and _rank(weight) == 5
    model: Any = build_model(ModelConfig(str(tmp_path / "exported")), 2, tokenizer(), 0)
    model.head.load_state_dict(load_file(tmp_path / "exported" / "head.safetensors"))
    test = load_data(cfg.task, 0).test
    probs = predict(model, encode(tokenizer(), test.inputs))
    stored = read_probs(_folder(results, out, NAME) / TEST, test.ids, 2)
    assert np.abs(probs - stored).max() < 1e-3 and np.ptp(stored) > 0.05


def test_without_distillation_it_starts_from_the_decomposition() -> None:
    student, ceiling = student_nodes(make_steps("low_rank:share=0.3,distil=false"), Plan())
    for node in (student, ceiling):
        assert dict(node.settings)["low_rank"] == 0.3 and "start" not in dict(node.needs)
    for spec in ("probe|low_rank", "low_rank|probe"):
        with pytest.raises(W2SError, match="expected low_rank without probe"):
            student_nodes(make_steps(spec), Plan())


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"source": "bow"}, "a method needs hidden states of the student"),
        ({"source": "scratch", "lora_rank": 2}, "lora_rank=2"),
    ],
)
def test_students_without_layers_of_their_own(
    student: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(W2SError, match=message):
        run(config(tmp_path, methods=[METHOD], student=student))


def test_features_are_checked() -> None:
    from w2s_fast.losses.features import FeatureDistillation

    model: Any = build_model(ModelConfig("scratch", hidden=16, heads=2), 2, tokenizer(), 0)
    rows = encode(tokenizer(), load_data(config(Path("unused")).task, 0).test.inputs)
    for bad, message in (
        (np.zeros((len(rows), 3)), "features have shape"),
        (np.full((len(rows), 2), np.nan), "features have numbers that are not finite"),
    ):
        with pytest.raises(W2SError, match=message):
            train(model, rows, bad, FeatureDistillation(), TrainConfig(), 0)


@pytest.mark.slow
@pytest.mark.dist
def test_as_by_one_process(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    found = {}
    for size, zero in ((1, 0), *((2, z) for z in ranks.ZERO_STAGES[2])):
        out = tmp_path / f"{size}-{zero}"
        out.mkdir()
        fields = {**TRAIN, "epochs": 1, "zero_stage": zero, "timeout_s": 120}
        cfg = config(out, student={"source": source}, methods=[METHOD], student_train=fields)
        (out / "run.yaml").write_text(to_yaml(cfg))
        ranks.run(__file__, size, ["run", "--config", str(out / "run.yaml"), "--quiet"])
        results = json.loads((out / "results.json").read_text())
        folder = _folder(results, out, NAME)
        found[size, zero] = read_probs(folder / TEST, load_data(cfg.task, 0).test.ids, 2)
    one = found.pop((1, 0))
    assert np.ptp(one) > 0.05
    for place, probs in found.items():
        assert np.abs(probs - one).max() < 1e-2, place


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
