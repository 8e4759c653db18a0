"""Policies in a run: language models whose implicit rewards say which completion is better."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from helpers.conflict_runs import conflict_run
from helpers.supervised_runs import folder_of
from helpers.text_runs import SCRATCH, policy_run

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig
from w2s_fast.pipeline.artifacts import LABELS, LOG, PAIR_LOGPROB, TEST, read_probs
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.pipeline.task_kinds import Policies, task_kind
from w2s_fast.tasks import Inputs
from w2s_fast.tasks._pairs import pair_up, shared_prompt


@pytest.mark.slow
@pytest.mark.parametrize("preference", ["dpo:beta=0.5", "simpo"])
def test_policies_learn_weak_preferences(preference: str, tmp_path: Path) -> None:
    cfg = policy_run(tmp_path, preference, losses=["xent", "logconf"], control=True)
    results = w2s_fast.run(cfg)
    assert results["runs"][0]["ceiling"] > 0.9
    assert results["runs"][0]["weak"] > 0.9 and results["runs"][0]["student"] > 0.9
    stages = results["provenance"]["stages"]
    references = sorted(name for name in stages if name.startswith("reference/"))
    assert bool(references) == (preference != "simpo")
    for name in references:
        logprob = np.load(folder_of(results, cfg, name) / PAIR_LOGPROB)
        assert logprob.shape[1] == 2 and (logprob < 0).all()


@pytest.mark.slow
def test_losses_of_preferences_share_their_references(tmp_path: Path) -> None:
    w2s_fast.run(policy_run(tmp_path, "dpo:beta=0.5"))
    stages = w2s_fast.run(policy_run(tmp_path, "dpo_norm:beta=2"))["provenance"]["stages"]
    assert all(s["reused"] for name, s in stages.items() if name.startswith("reference/"))
    assert not any(s["reused"] for name, s in stages.items() if name.startswith("student/"))


@pytest.mark.slow
def test_a_policy_starts_at_even_odds_and_its_labels_compare_with_the_start(tmp_path: Path) -> None:
    cfg = policy_run(tmp_path, "dpo:beta=0.5")
    still = dataclasses.replace(cfg.weak_train, lr=0.0)
    results = w2s_fast.run(dataclasses.replace(cfg, weak_train=still))
    weak = folder_of(results, cfg, "weak/0")
    data = load_data(cfg.task, 0)
    assert np.allclose(read_probs(weak / TEST, data.test.ids, 2), 0.5, atol=1e-4)


@pytest.mark.slow
def test_methods_of_labels_work_on_policies(tmp_path: Path) -> None:
    """Folds, members, filters and relabelling by a student, each with its own reference."""
    filters = ["confident:low=0.45,high=0.55", "knn_filter:k=5"]
    methods = [*filters, "ensemble:members=2", "strong_to_strong"]
    cfg = policy_run(tmp_path, "dpo:beta=0.5", methods=methods, weak_calibration="temperature")
    results = w2s_fast.run(dataclasses.replace(cfg, calibration_folds=2))
    assert min(row["student"] for row in results["runs"]) > 0.8


@pytest.mark.slow
def test_a_policy_learns_how_the_weak_policy_has_changed(tmp_path: Path) -> None:
    """WSPO: the first step has the weak model's log-ratios, of conflicting pairs too."""
    # A step has every row of 100 three times, of 150 twice.
    whole = {"epochs": 12, "lr": 0.01, "batch_size": 300, "timeout_s": 120}
    cfg = conflict_run(
        tmp_path,
        weak={**SCRATCH, "preference": "dpo:beta=0.5"},
        student={**SCRATCH, "preference": "wspo:average=False"},
        methods=["naive", "implicit_conflict:ratio=0.5"],
        weak_train={**whole, "epochs": 1, "batch_size": 16},
        student_train=whole,
    )
    results = w2s_fast.run(cfg)
    assert results["runs"][0]["student"] > 0.75  # in the direction of the weak model
    data = load_data(cfg.task, 0)
    assert data.conflict is not None
    q = read_probs(folder_of(results, cfg, "labels/0") / LABELS, data.transfer.ids, 2)
    drawn = np.sort(np.random.default_rng(0).permutation(len(data.conflict))[:50])
    gold = np.eye(2)[data.conflict.labels[drawn]]
    jobs = {job.name: dict(job.inputs) for job in plan_jobs(cfg).jobs}
    for name, rows in (("xent", slice(0, 100)), ("implicit_conflict:ratio=0.5+xent", slice(None))):
        inputs = jobs[f"student/0/{name}"]

        def logprob(kind: str, inputs: dict[str, str] = inputs) -> np.ndarray:
            splits = [s for s in ("transfer", "conflict") if f"{kind}_{s}" in inputs]
            stages = [folder_of(results, cfg, inputs[f"{kind}_{s}"]) for s in splits]
            parts = [np.load(stage / PAIR_LOGPROB) for stage in stages]
            return np.concatenate([parts[0], *(part[drawn] for part in parts[1:])])

        ratio = logprob("weak_policy") - logprob("weak_reference")
        assert np.ptp(ratio) > 0.1  # the weak model has moved
        loss = (np.concatenate([q, gold])[rows] * ratio**2).sum(1).mean()
        log = json.loads((folder_of(results, cfg, f"student/0/{name}") / LOG).read_text())
        assert log["losses"][0] == pytest.approx(loss, rel=1e-4)


def test_weak_policies_that_are_sources_have_their_references(tmp_path: Path) -> None:
    cfg = policy_run(tmp_path, "dpo", supervisors={"sources": ["weak", "weak:member=1"]})
    jobs = [job for job in plan_jobs(cfg).jobs if job.setting("role") == "weak"]
    references = {
        stage: [sorted(k for k, _ in job.inputs if "reference" in k)
                for job in jobs if job.stage == stage]
        for stage in ("weak", "labels")
    }  # fmt: skip
    assert references["weak"] == [["reference_test", "reference_weak"]] * 2
    assert sorted(references["labels"]) == [["reference_test"]] * 2 + [["reference_transfer"]] * 2


@pytest.mark.parametrize(
    ("weak", "changes", "message"),
    [
        ("", {}, "weak.preference=''"),
        ("wspo", {}, "weak.preference='wspo' learns how the weak"),
        ("dpo", {"losses": ["xent", "gce"]}, "'gce' with student.preference='wspo' would learn"),
        (
            "dpo",
            {"supervisors": {"sources": ["weak", "weak:member=1", "weak:member=2"]}},
            "weak models of its own",
        ),
    ],
)
def test_wspo_needs_a_weak_policy(
    weak: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = {**SCRATCH, "preference": weak}
    with pytest.raises(W2SError, match=message):
        w2s_fast.run(policy_run(tmp_path, "wspo", weak=model, **changes))
    assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {**SCRATCH, "preference": "kto"}}, "no reward of a single language model"),
        ({"student": {**SCRATCH, "preference": "dop"}}, "dpo"),
        ({"student": {"source": "bow", "preference": "dpo"}}, "expected a language model"),
        ({"methods": ["probe"]}, "frozen"),
        ({"task": {"name": "local_answers", "label": "chosen"}}, "leave it empty"),
    ],
)
def test_what_a_policy_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(W2SError, match=message):
        w2s_fast.run(policy_run(tmp_path, "dpo", **changes))


def test_texts_without_prompts_are_refused() -> None:
    kind = task_kind("preference", "dpo")
    assert isinstance(kind, Policies) and not isinstance(task_kind("preference"), Policies)
    with pytest.raises(W2SError, match="column of prompts"):
        kind.encode(None, Inputs(("a",), ("x",), ("y",), ("g",)), 16)


def test_the_prompt_that_two_dialogues_share() -> None:
    turns = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant:"
    assert shared_prompt(f"{turns} see you", f"{turns} so long") == turns
    assert shared_prompt("\n\nHuman: hi\n\nAssistant: a", "\n\nHuman: hi\n\nAssistant: b") == (
        "\n\nHuman: hi\n\nAssistant:"
    )
    assert shared_prompt("the old key is", "the old keys are") == "the old"
    assert shared_prompt("one", "two") == ""
    item = pair_up("Q: 1? yes", "Q: 1? yesterday", None, Random(0), "Q: 1?")
    assert item is not None and item.prompt == "Q: 1?"


def test_a_model_that_is_no_policy_has_the_stages_of_before() -> None:
    """An empty ``preference`` is no part of what identifies a stage."""
    from w2s_fast.pipeline.job_identity import _model_slice

    assert "preference" not in _model_slice(ModelConfig())
    assert _model_slice(ModelConfig(preference="dpo"))["preference"] == "dpo"
