"""Students that resist noise, in runs: what their stages train and store, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import config
from safetensors.torch import load_file

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.pipeline import run
from w2s_fast.pipeline.check_fit import check_fit
from w2s_fast.pipeline.check_trainings import check_trainings
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.job_identity import config_slice
from w2s_fast.pipeline.jobs import Job
from w2s_fast.pipeline.stages.training_set import group_split
from w2s_fast.pipeline.students import students

PRETRAIN = {"hidden": 16, "layers": 2, "heads": 2, "steps": 12, "batch_size": 4, "length": 32}


def _config(out: Path, methods: list[str], **changes: Any) -> RunConfig:
    task = {"n_weak": 40, "n_transfer": 64, "n_test": 40, "pretrain": PRETRAIN}
    recipe = {"epochs": 2, "lr": 0.01, "batch_size": 8}
    student = {"source": "agreement-lm"}
    values = {"task": task, "student": student, "student_train": recipe, "methods": methods}
    return config(out, **{**values, **changes})


def _students(cfg: RunConfig) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Log and weights of every student, in order of the methods."""
    stages = run(cfg, quiet=True)["provenance"]["stages"]
    folders = [cfg.store_dir / s["folder"] for n, s in stages.items() if n.startswith("student/")]
    return [
        (json.loads((f / "log.json").read_text()), load_file(f / "model.safetensors"))
        for f in folders
    ]


@pytest.mark.slow
def test_nested_dropout_keeps_the_width_of_held_out_rows(tmp_path: Path) -> None:
    specs = ["naive", "nested_dropout:sigma=4", "probe|nested_dropout:sigma=4,holdout=0.3"]
    cfg = _config(tmp_path, [*specs, "nested_dropout:sigma=40,holdout=0"])
    (naive, _), *nested, (plain, whole) = _students(cfg)
    groups = load_data(cfg.task, 0).transfer.groups
    for (log, weights), share in zip(nested, (0.1, 0.3), strict=True):
        held = int(group_split(groups, share, 0).sum())
        assert log["steps"] == cfg.student_train.steps(len(groups) - held) < naive["steps"]
        width = log["head_width"]
        assert 1 <= width <= 16 and (weights["head.weight"][:, width:] == 0).all()
        assert (weights["head.weight"][:, :1] != 0).any()
    assert plain["steps"] == naive["steps"] and plain["losses"] != naive["losses"]
    assert "head_width" not in plain and (whole["head.weight"] != 0).any(0).all()


def test_models_without_a_head_are_refused_at_once(tmp_path: Path) -> None:
    for changes in (
        {"methods": ["nested_dropout"]},
        {"methods": ["naive"], "student_train": {"nested_dropout": 4.0}},
    ):
        with pytest.raises(W2SError, match="works on the input of a linear head.*'bow'"):
            cfg = _config(tmp_path, **{"student": {"source": "bow"}, **changes})
            check_fit(cfg, "classification", 2)
    check_fit(_config(tmp_path, ["nested_dropout"]), "classification", 2)


STEP_METHODS = {
    "co_teaching:forget=0.5": {"forget": 0.5},
    "mean_teacher:decay=0.8": {"decay": 0.8},
    "fixmatch:threshold=0.51,drop=0.3": {"drop": 0.3},
    "self_training:start=0.25,refresh=2,threshold=0.0001": {"start": 0.25},
}


@pytest.mark.slow
def test_step_targets_reach_full_and_frozen_students(tmp_path: Path) -> None:
    """Each method trains another student, stored as one model, with the steps of the naive one."""
    specs = ["naive", *STEP_METHODS]
    cfg = _config(tmp_path, [*specs, "probe", *(f"probe|{spec}" for spec in STEP_METHODS)])
    found = _students(cfg)
    for (naive, weights), *others in (found[:5], found[5:]):
        for log, own in others:
            assert log["steps"] == naive["steps"] and log["losses"] != naive["losses"]
            assert own.keys() == weights.keys()
            assert any(not own[name].equal(weights[name]) for name in own)
        # The first steps of self-training learn the weak labels.
        assert others[3][0]["losses"][:4] == pytest.approx(naive["losses"][:4], rel=1e-5)


@pytest.mark.slow
def test_reward_models_learn_step_targets(tmp_path: Path) -> None:
    """Preferences: two rows of tokens an example, and a bag of words that drops some of them."""
    specs = ["naive", *list(STEP_METHODS)[:3], "self_training:contrast=0,start=0.25"]
    rows = [
        {"prompt": f"q {i}", "chosen": f"good answer {i % 7} yes", "rejected": f"bad {i % 5} no"}
        for i in range(150)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "pairs", "path": str(path), "n_weak": 40, "n_transfer": 60, "n_test": 40}
    cfg = _config(tmp_path / "out", specs, task=task, student={"source": "bow"})
    (naive, _), *others = _students(cfg)
    for log, weights in others:
        assert log["losses"] != naive["losses"] and set(weights) == {"weight"}


def test_settings_of_step_targets_become_those_of_the_training() -> None:
    from w2s_fast.methods import Plan, make_method
    from w2s_fast.training.step_targets import make_step_targets

    for spec, fields in STEP_METHODS.items():
        targets = make_step_targets(make_method(spec).training(Plan())["step_targets"])
        assert {name: getattr(targets, name) for name in fields} == fields
    student = make_method("mean_teacher:decay=0").training(Plan())["step_targets"]
    assert make_step_targets(student).final == "student"  # type: ignore[attr-defined]


def test_students_without_classes_or_states_are_refused(tmp_path: Path) -> None:
    bow = {"source": "bow"}
    with pytest.raises(W2SError, match="a method with contrast=1.0 works on the input"):
        check_fit(_config(tmp_path, ["self_training"], student=bow), "classification", 2)
    check_fit(
        _config(tmp_path, ["self_training:contrast=0", *STEP_METHODS][:4], student=bow),
        "classification",
        2,
    )
    with pytest.raises(W2SError, match="two steps|trains with step_targets"):
        check_fit(_config(tmp_path, ["mean_teacher|fixmatch"], student=bow), "classification", 2)


def test_policies_are_refused(tmp_path: Path) -> None:
    """Their pairs of completions have neither a class nor a linear head."""
    policy = {"source": "scratch", "hidden": 16, "heads": 2, "preference": "dpo"}
    for method, message in (
        ("co_teaching", "targets in every step .CoTeaching.*preference='dpo'"),
        ("nested_dropout", "a method with nested_dropout=100.0 works on the input"),
    ):
        cfg = _config(tmp_path, [method], student=policy)
        nodes = [node for student in students(cfg) for node in student.nodes(cfg)]
        with pytest.raises(W2SError, match=message):
            check_trainings(cfg, "preference", nodes)
        cfg = _config(tmp_path, [method], student={**policy, "preference": ""})
        check_trainings(cfg, "preference", nodes)


def test_stages_of_before_are_found(tmp_path: Path) -> None:
    """A setting that came later enters a hash only where it is set."""
    job = Job("student", "student/0/xent", 0, (("loss", "xent"), ("role", "student")))
    names = [
        set(config_slice(_config(tmp_path, ["naive"], student_train=train), job, 2)["train"])
        for train in ({}, {"nested_dropout": 8.0})
    ]
    assert names[1] - names[0] == {"nested_dropout"}
