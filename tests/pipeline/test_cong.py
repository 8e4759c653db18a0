"""Contrasted texts in a run, and confidence as the weight of preference pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.supervised_runs import folder_of
from helpers.text_runs import policy_run, text_run

import w2s_fast
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.methods import PairLabels, Plan, TextLabels, make_method
from w2s_fast.pipeline.artifacts import LABELS, LOG, read_probs, read_weighted_probs
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.pipeline.text_files import read_samples, read_text_labels
from w2s_fast.tasks import get_task


def test_plan_of_both_steps() -> None:
    p = Plan()
    node = make_method("cong:strength=0.7,plausible=0.2").labels(p, p.weak_labels())
    needs = dict(node.needs)
    contrasted, before = (dict(needs[name].settings) for name in ("contrasted", "before"))
    assert (contrasted["role"], contrasted["contrast"], contrasted["plausible"]) == (
        "weak", 0.7, 0.2
    )  # fmt: skip
    assert dict(needs["contrasted"].needs)["model"] == p.weak_model()
    assert before["role"] == "weak" and "contrast" not in before and not needs["before"].needs
    start = make_method("cong:strength=0.7,plausible=0.2").initial(p, p.weak_labels())
    assert start is not None and dict(start.needs)["labels"] == make_method(
        "cong:strength=0.7,plausible=0.2,train=sft"
    ).labels(p, p.weak_labels())
    assert make_method("cong:train=sft").initial(p, p.weak_labels()) is None
    assert "contrast" not in dict(p.samples().settings), "stored samples of before are found"


def test_texts_by_hand() -> None:
    from w2s_fast.methods import Prompts

    prompts = Prompts(["a", "b", "c"], ["1", "2", "3"])
    method = make_method("cong")
    texts = method.answers(prompts, [[" x"], ["  "], [" z"]], seed=0)
    assert texts.rows.tolist() == [0, 2] and texts.texts == [" x", " z"]
    assert texts.report == {"blank": ["b"]}
    pairs = method.pairs(prompts, [[" x"], [" y"], [" z"]], [[" o"], [" y"], [" p"]], seed=0)
    assert pairs.rows.tolist() == [0, 2] and pairs.chosen == [" x", " z"]
    assert pairs.rejected == [" o", " p"] and pairs.report["equal_texts"] == ["b"]


@pytest.mark.slow
def test_a_run_prefers_contrasted_texts(tmp_path: Path) -> None:
    methods = ["cong:strength=2", "cong:strength=2,train=sft", "cong:strength=2,loss=ipo"]
    cfg = text_run(tmp_path, methods)
    results = w2s_fast.run(cfg)
    stages: Any = results["provenance"]["stages"]
    ids = get_task(cfg.task.name).load(cfg.task, 0).transfer.ids
    samples = {
        name: read_samples(cfg.store_dir / stage["folder"] / "samples", ids)
        for name, stage in stages.items()
        if name.startswith("samples/")
    }
    assert len(samples) == 2, "shared by all three"

    def labels(name: str) -> PairLabels | TextLabels:
        return read_text_labels(folder_of(results, cfg, name), ids)

    pairs = labels(f"text_labels/0/{methods[0]}+xent/1")
    assert isinstance(pairs, PairLabels) and len(pairs) > 20
    inputs = dict(
        next(
            j for j in plan_jobs(cfg).jobs if j.name == f"text_labels/0/{methods[0]}+xent/1"
        ).inputs
    )
    for side, given in (("chosen", "contrasted"), ("rejected", "before")):
        own = [samples[inputs[given]][r][0].strip() for r in pairs.rows]
        assert [text.strip() for text in getattr(pairs, side)] == own
    log = json.loads((folder_of(results, cfg, f"student/0/{methods[0]}+xent") / LOG).read_text())
    assert log["losses"][0] == pytest.approx(np.log(2), abs=1e-3), "it continues from its reference"
    assert results["gold"] == []


def test_a_sharded_weak_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    cfg = text_run(tmp_path, ["cong"], weak_train={"zero_stage": 3})
    with pytest.raises(W2SError, match="weak_train.zero_stage=3: method 'cong' runs the weak"):
        w2s_fast.run(cfg)


def weights_of(cfg: RunConfig, results: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    ids = get_task(cfg.task.name).load(cfg.task, 0).transfer.ids
    return read_weighted_probs(folder_of(results, cfg, name) / LABELS, ids, 2)


@pytest.mark.slow
def test_preference_pairs_are_weighted_by_confidence(tmp_path: Path) -> None:
    """CW-DPO: hard labels of a policy's pairs, weighted by twice the distance from a coin."""
    cfg = policy_run(tmp_path, "dpo:beta=0.5", methods=["naive", "confidence_weighted"])
    results = w2s_fast.run(cfg)
    ids = get_task(cfg.task.name).load(cfg.task, 0).transfer.ids
    weak = read_probs(folder_of(results, cfg, "labels/0") / LABELS, ids, 2)
    probs, weight = weights_of(cfg, results, "apply/0/confidence_weighted+xent/1")
    assert np.array_equal(probs, np.eye(2)[weak.argmax(1)])
    assert weight == pytest.approx(np.abs(weak[:, 1] - weak[:, 0]), abs=1e-6)
    names = ("xent", "confidence_weighted+xent")
    logs = [json.loads((folder_of(results, cfg, f"student/0/{n}") / LOG).read_text())
            for n in names]  # fmt: skip
    assert logs[0]["losses"][0] == pytest.approx(logs[1]["losses"][0], abs=1e-4)  # log 2 of any
    assert logs[0]["losses"][-1] != logs[1]["losses"][-1]
