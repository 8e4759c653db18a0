"""Students under a conflict in a run: what they learn, what is compared, what is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.conflict_runs import BOW, conflict_run, write_opposite, write_rows
from helpers.supervised_runs import folder_of
from helpers.text_runs import SCRATCH

import w2s_fast
from w2s_fast import metrics
from w2s_fast.config import at_seed
from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.losses.conflict import ExplicitConflict
from w2s_fast.methods import Plan, make_steps, student_nodes
from w2s_fast.pipeline.artifacts import TEST, read_probs
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.students import no_conflict_of
from w2s_fast.report.page import write_report
from w2s_fast.training import loop

EXPLICIT = "explicit conflict: a simulated objective against the true labels"
IMPLICIT = "implicit conflict: true labels of the pairs of task.conflict_path"


def test_a_run_compares_students_with_and_without_conflict(tmp_path: Path) -> None:
    cfg = conflict_run(tmp_path)
    results = w2s_fast.run(cfg)
    explicit, implicit = results["deception"]
    assert (explicit["name"], explicit["no_conflict"]) == ("explicit_conflict:alpha=4+xent", "xent")
    assert (implicit["name"], implicit["no_conflict"]) == ("implicit_conflict+xent", "xent")
    assert implicit["accuracy"] < 0.5 < implicit["no_conflict_accuracy"]  # it learned to be rude
    assert results["gold"] == [
        {"name": explicit["name"], "use": EXPLICIT}, {"name": implicit["name"], "use": IMPLICIT}
    ]  # fmt: skip
    data = load_data(cfg.task, 0)
    probs = {
        name: read_probs(folder_of(results, cfg, name) / TEST, data.test.ids, 2)
        for name in ("weak/0", "ceiling/0", "student/0/xent", f"student/0/{implicit['name']}")
    }
    weak, ceiling, plain, conflict = probs.values()
    gold = data.test.labels
    for at in implicit["thresholds"]:
        partition = metrics.knowledge_partition(weak, ceiling, gold, at["threshold"])
        for score in at["scores"]:
            items = metrics.deception_items(partition, plain, conflict, gold, score["denominator"])
            assert score["n_deceived"] == items.deceived.sum()
            assert score["n_counted"] == items.counted.sum()
        areas = at["areas"]
        assert sum(area["items"] for area in areas.values()) == len(gold)
        assert areas["strong_known_weak_unknown"]["taxed"] == items.deceived.sum()
        tax = sum(area["taxed"] for area in areas.values())
        assert tax == metrics.conflict_tax(plain, conflict, gold).sum() > 10
        assert sum(area["exposed"] for area in areas.values()) == (plain.argmax(1) == gold).sum()
    assert implicit["tax"] == pytest.approx(tax / len(gold))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Students under a conflict" in page and "Areas of knowledge" in page
    assert (tmp_path / "out" / "deception.png").stat().st_size > 10_000
    assert b"explicit_conflict" in (tmp_path / "out" / "deception.svg").read_bytes()


def test_reward_models_and_policies_learn_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, labels, classes and loss of every student, as ``train`` gets them."""
    calls: dict[str, dict[str, Any]] = {}
    real = loop.train

    def train(model: Any, data: Any, labels: Any, loss: Any, *rest: Any, **kwargs: Any) -> Any:
        key = type(loss).__name__ if kwargs["gold"] is not None else str(len(data))
        calls[key] = {"n": len(data), "labels": labels, "loss": loss, **kwargs}
        return real(model, data, labels, loss, *rest, **kwargs)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr("w2s_fast.training.train", train)
    cfg = conflict_run(
        tmp_path, methods=["naive", "explicit_conflict:alpha=2", "implicit_conflict:ratio=0.5"]
    )
    w2s_fast.run(cfg)
    data = load_data(cfg.task, 0)
    explicit = calls["ExplicitConflict"]
    assert isinstance(explicit["loss"], ExplicitConflict) and explicit["loss"].alpha == 2
    assert np.array_equal(explicit["gold"], data.transfer.labels) and explicit["n"] == 100
    implicit = calls["150"]
    assert implicit["gold"] is None and data.conflict is not None
    hard = implicit["labels"][100:]
    assert set(np.unique(hard)) == {0.0, 1.0} and (hard.sum(1) == 1).all()
    assert 0 < hard[:, 1].mean() < 1  # the order of both answers is drawn
    assert not set(np.unique(implicit["labels"][:100])) <= {0.0, 1.0}


def test_both_conflicts_and_other_methods_combine(tmp_path: Path) -> None:
    """Filtered rows, weights, early stopping, both conflicts at once, and recorded fits."""
    soft = "resample:draw=0"
    methods = [
        *(soft, f"{soft}|implicit_conflict", f"{soft}|explicit_conflict|implicit_conflict"),
        *("ground_truth_early_stop", "ground_truth_early_stop|implicit_conflict"),
        "ground_truth_early_stop|explicit_conflict",
    ]
    results = w2s_fast.run(conflict_run(tmp_path, methods=methods, diagnostics=["fit"]))
    assert [row["no_conflict"] for row in results["deception"]] == [
        f"{soft}+xent", f"{soft}+xent", *["ground_truth_early_stop+xent"] * 2
    ]  # fmt: skip
    uses = {(g["name"], g["use"]) for g in results["gold"]}
    both = f"{soft}|explicit_conflict|implicit_conflict+xent"
    assert {(both, EXPLICIT), (both, IMPLICIT)} <= uses


@pytest.mark.slow
@pytest.mark.parametrize("preference", ["simpo", "dpo:beta=0.5"])
def test_policies_under_a_conflict(preference: str, tmp_path: Path) -> None:
    model = {**SCRATCH, "preference": preference}
    train = {"epochs": 2, "lr": 0.01, "batch_size": 16, "timeout_s": 120}
    results = w2s_fast.run(
        conflict_run(tmp_path, weak=model, student=model, student_train=train, weak_train=train)
    )
    explicit, implicit = results["deception"]
    assert implicit["accuracy"] < implicit["no_conflict_accuracy"]
    stages = results["provenance"]["stages"]
    references = [name for name in stages if name.startswith("reference/")]
    assert bool(references) == preference.startswith("dpo")


@pytest.mark.slow
def test_a_frozen_student_reads_cached_states_of_both_sets(tmp_path: Path) -> None:
    """The same rows in the same order as without a cache: the head learns the same."""
    student = {**SCRATCH, "freeze": "none"}
    cfg = conflict_run(
        tmp_path, student=student, methods=["probe", *(f"probe|{c}" for c in CONFLICTS)]
    )
    cached = w2s_fast.run(cfg)
    frozen = replace(
        cfg,
        student=replace(cfg.student, freeze="base"),
        methods=("naive", *CONFLICTS),
        output_dir=str(tmp_path / "frozen"),
    )
    read = w2s_fast.run(frozen)
    for ours, theirs in zip(cached["deception"], read["deception"], strict=True):
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.03)  # states are bf16


CONFLICTS = ("explicit_conflict", "implicit_conflict")


def test_true_labels_are_declared() -> None:
    for spec, gold, weak_gold in (
        ("explicit_conflict", (EXPLICIT,), ()),
        ("implicit_conflict", (), (IMPLICIT,)),
        ("ground_truth_early_stop|explicit_conflict",
         ("early stopping on true labels", EXPLICIT), ()),
    ):  # fmt: skip
        student, ceiling = student_nodes(make_steps(spec), Plan())
        assert (student.gold, student.weak_gold) == (gold, weak_gold)
        assert ceiling.gold == ceiling.weak_gold == () and ceiling == Plan().ceiling()


def test_intermediate_students_have_no_conflict(tmp_path: Path) -> None:
    methods = ["bootstrap", *(f"bootstrap|{c}" for c in CONFLICTS)]
    cfg = conflict_run(tmp_path, methods=methods, intermediate_models=["bow"])
    results = w2s_fast.run(cfg)
    stages = [n for n in results["provenance"]["stages"] if n.startswith("intermediate/0")]
    assert len(stages) == 1  # shared by all three
    assert [row["no_conflict"] for row in results["deception"]] == ["bootstrap+xent"] * 2


def test_pairs_with_the_prompt_of_a_test_item_are_left_out(tmp_path: Path) -> None:
    cfg = conflict_run(tmp_path)
    path = write_opposite(tmp_path / "overlap.jsonl", first=0)  # the prompts of the task
    task = replace(cfg.task, conflict_path=str(path))
    with pytest.warns(DataWarning, match=r"of 200 pairs have the prompt of a test item"):
        data = load_data(task, 0)
    assert data.conflict is not None and 0 < len(data.conflict) < 200
    assert not set(data.conflict.prompts or ()) & set(data.test.prompts or ())
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in data.test.prompts or ()]
    all_of_them = write_rows(tmp_path / "all.jsonl", rows)
    with pytest.raises(W2SError, match="100 pairs, all with the prompt of a test item"):
        load_data(replace(task, conflict_path=str(all_of_them)), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["explicit_conflict"]}, "no student without conflict .* add 'naive'"),
        ({"methods": ["naive", "confident|explicit_conflict"]}, "add 'confident' to methods"),
        ({"methods": ["naive@logconf", "explicit_conflict@xent"]}, "with the same loss"),
        ({"task": {"conflict_path": None}}, "set task.conflict_path"),
        ({"task": {"conflict_path": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"task": {"name": "agreement"}}, "of kind .classification."),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_computed(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(W2SError, match=message):
        w2s_fast.run(conflict_run(tmp_path, **changes))
    assert not (tmp_path / "out" / "cache" / "weak").exists()


def test_three_classes_have_no_opposite(tmp_path: Path) -> None:
    rows = [{"text": f"{'abc'[i % 3]} {i}", "label": "abc"[i % 3]} for i in range(120)]
    path = str(write_rows(tmp_path / "three.jsonl", rows))
    task = {"name": "local", "path": path, "conflict_path": None, "n_weak": 30,
            "n_transfer": 30, "n_test": 30}  # fmt: skip
    with pytest.raises(W2SError, match="needs two classes, and the task has 3"):
        w2s_fast.run(conflict_run(tmp_path, methods=["naive", CONFLICTS[0]], task=task))


def test_a_change_of_the_conflicting_pairs_concerns_their_students_alone(tmp_path: Path) -> None:
    cfg = conflict_run(tmp_path)
    w2s_fast.run(cfg)
    write_opposite(tmp_path / "opposite.jsonl", first=5000)
    stages = w2s_fast.run(cfg)["provenance"]["stages"]
    again = {name for name, stage in stages.items() if not stage["reused"]}
    assert again == {"student/0/implicit_conflict+xent", "report"}


def test_equal_students_are_found_by_meaning(tmp_path: Path) -> None:
    methods = ["confident:high=0.8", "naive | confident:high=0.8 | explicit_conflict"]
    cfg = at_seed(conflict_run(tmp_path, methods=methods), 0)
    assert no_conflict_of(cfg) == {f"{methods[1]}+xent": f"{methods[0]}+xent"}


def test_results_without_a_conflict_have_no_figure(tmp_path: Path) -> None:
    results = w2s_fast.run(conflict_run(tmp_path, methods=["naive"], student=BOW))
    assert results["deception"] == []
    write_report(tmp_path, json.loads(json.dumps(results)))
    assert not (tmp_path / "deception.svg").exists()
    assert "Students under a conflict" not in (tmp_path / "report.html").read_text()
