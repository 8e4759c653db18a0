"""Boosted weak models in a run: which rows they learn, with which weights, and who judges them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.toy_run import config

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.methods._boosting import samme_round
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import BOOSTING_ROWS, BOOSTING_VOTE, read_probs
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.jobs import Job, plan_jobs
from w2s_fast.pipeline.stages.training_set import folds, load_training_set

SPEC = "ensem_w2s:members=3"


def boosted(out: Path, **changes: object) -> RunConfig:
    task = {"n_weak": 80, "n_transfer": 64, "n_test": 40}
    return config(out, task=task, methods=["naive", SPEC], **changes)


def context(cfg: RunConfig, job: Job, folders: dict[str, Path]) -> Context:
    return Context(cfg, job, folders, lambda *_: None, lambda seed: load_data(cfg.task, seed))


def test_rounds_are_those_of_adaboost_on_rows_that_a_judge_did_not_learn(tmp_path: Path) -> None:
    cfg = boosted(tmp_path)
    results = run(cfg)
    stages = results["provenance"]["stages"]
    folders = {name: cfg.store_dir / stage["folder"] for name, stage in stages.items()}
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    data = load_data(cfg.task, 0)
    rounds = [job for job in jobs.values() if job.stage == "boosting"]
    assert len(rounds) == 3 and not any(job.gold for job in rounds)
    weight = np.ones(80)
    for number, job in enumerate(rounds):
        inputs, probs = dict(job.inputs), []
        fold = folds(context(cfg, job, folders), data.weak.inputs)
        for f in range(2):
            labels = jobs[inputs[f"fold{f}"]]
            judge = jobs[dict(labels.inputs)["model"]]
            learned = load_training_set(context(cfg, judge, folders))
            assert set(learned.items.ids) == {
                item for item, own in zip(data.weak.ids, fold, strict=True) if own != f
            }
            if number:
                assert learned.weight == pytest.approx(weight[fold != f], rel=1e-5)
            else:
                assert learned.weight is None
            assert judge.setting("member") == number
            probs.append(read_probs(folders[labels.name] / "labels", data.weak.ids, 2))
        wrong = np.stack(probs)[fold, np.arange(80)].argmax(1) != data.weak.labels
        assert 0 < wrong.sum() < 80
        vote, weight = samme_round(wrong, weight, 2)
        stored = np.load(folders[job.name] / BOOSTING_VOTE)
        assert stored == pytest.approx([vote], abs=1e-5)
        assert np.load(folders[job.name] / BOOSTING_ROWS) == pytest.approx(weight, rel=1e-4)
    assert results["gold"] == [
        {
            "name": f"{SPEC}+xent",
            "use": "true labels of the weak split weight the votes of weak models",
        }
    ]


def test_weights_change_what_a_weak_model_learns(tmp_path: Path) -> None:
    """A bag of words is the same for every seed, so members differ by their rows' weights alone."""
    cfg = boosted(tmp_path, weak_train={"epochs": 8, "lr": 0.3, "batch_size": 16})
    stages = run(cfg)["provenance"]["stages"]
    weak = [name for name in stages if name.startswith("weak/")]
    assert len(weak) == 3 * (1 + 2), "the first member is the floor"
    models = {stages[name]["digest"] for name in weak}
    assert len(models) == len(weak)


def test_boosting_needs_weak_models_of_its_own(tmp_path: Path) -> None:
    cfg = boosted(tmp_path, supervisors={"sources": ["weak", "weak:member=1"]})
    with pytest.raises(W2SError, match="the method trains weak models of its own"):
        plan_jobs(cfg)
