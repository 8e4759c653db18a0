"""Delta learning, WSPO, trainings from easy to hard and pairs of search trees in runs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.search_trees import write_trees
from helpers.supervised_runs import folder_of
from helpers.text_runs import text_run

import w2s_fast
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.methods import PairLabels, Plan, Prompts, make_method, make_steps, student_nodes
from w2s_fast.pipeline.artifacts import LOG, PAIR_LOGPROB, PERPLEXITY
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.pipeline.text_files import read_text_labels
from w2s_fast.tasks import get_task
from w2s_fast.training import difficulty_stages
from w2s_fast.training.data import RowOrder


def labels_of(results: Any, cfg: RunConfig, name: str) -> PairLabels:
    """The pairs of a stage, whose items are those of the transfer set."""
    folder = folder_of(results, cfg, name)
    items = get_task(cfg.task.name).load(cfg.task, 0).transfer
    labels = read_text_labels(folder, items.ids)
    assert isinstance(labels, PairLabels)
    return labels


def n_right(cfg: RunConfig, rows: Sequence[int], texts: Sequence[str]) -> int:
    """Return how many texts end in the sum of their item, which ``read: number`` finds."""
    answers = get_task(cfg.task.name).load(cfg.task, 0).transfer.answers
    assert answers is not None
    last = [re.findall(r"\d+", text)[-1:] for text in texts]
    return sum(numbers == [answers[row].strip()] for row, numbers in zip(rows, last, strict=True))


def stage_names(results: Any, stage: str) -> list[str]:
    return [name for name in results["provenance"]["stages"] if name.startswith(f"{stage}/")]


def changed(results: Any) -> set[str]:
    stages = results["provenance"]["stages"]
    return {name.partition("/")[0] for name, stage in stages.items() if not stage["reused"]}


@pytest.mark.slow
def test_delta_and_its_controls(tmp_path: Path) -> None:
    """Pairs of the weak model and of half of it; reversed; and the chosen sides alone."""
    methods = ["delta", "delta:direction=reversed", "delta:train=sft", "wspo"]
    cfg = text_run(tmp_path, methods)
    results = w2s_fast.run(cfg)
    reports = {row["name"]: row["report"] for row in results["text_labels"]}
    plain = reports["delta+xent"]
    n = plain["paired"] + sum(len(v) for v in plain.values() if isinstance(v, list))
    assert n == 48 and plain["paired"] > 20
    right = {name: report.pop("true answers") for name, report in reports.items()}
    assert reports["delta:train=sft+xent"] == reports["delta:direction=reversed+xent"] == plain
    pairs = labels_of(results, cfg, "text_labels/0/delta+xent/1")
    back = labels_of(results, cfg, "text_labels/0/delta:direction=reversed+xent/1")
    assert list(pairs.chosen) == list(back.rejected) and list(pairs.rejected) == list(back.chosen)
    assert right["delta+xent"] == {
        side: n_right(cfg, pairs.rows, getattr(pairs, side)) for side in ("chosen", "rejected")
    }
    assert right["delta:train=sft+xent"] == {"texts": right["delta+xent"]["chosen"]}
    losses = {
        name: json.loads((folder_of(results, cfg, f"student/0/{name}+xent") / LOG).read_text())
        for name in methods
    }
    assert losses["delta"]["losses"][0] == pytest.approx(np.log(2), abs=1e-3)
    assert losses["delta"]["losses"][-1] < np.log(2) - 0.01
    # WSPO learns the same pairs; its target is the log-ratio of the weak model to its start.
    names = stage_names(results, "pair_logprob")
    arrays = {n: np.load(folder_of(results, cfg, n) / PAIR_LOGPROB) for n in names}
    assert len(arrays) == 4 and {a.shape for a in arrays.values()} == {(plain["paired"], 2)}
    assert len(stage_names(results, "text_labels")) == 3
    inputs = dict(next(j for j in plan_jobs(cfg).jobs if j.name == "student/0/wspo+xent").inputs)
    target = arrays[inputs["weak_policy"]] - arrays[inputs["weak_reference"]]
    assert (target[:, 0] > target[:, 1]).all() and (target > 1).all()
    assert results["gold"] == []


@pytest.mark.slow
def test_what_an_edit_of_delta_computes_again(tmp_path: Path) -> None:
    cfg = text_run(tmp_path, ["delta"])
    w2s_fast.run(cfg)
    again = w2s_fast.run(dataclasses.replace(cfg, methods=("delta:loss=ipo",)))
    assert changed(again) == {"student", "report"}
    again = w2s_fast.run(dataclasses.replace(cfg, methods=("delta:base=naive",)))
    assert changed(again) == {"student", "pair_logprob", "report"}


def test_delta_needs_two_generators_and_the_intermediate_model() -> None:
    with pytest.raises(W2SError, match="chosen and rejected are both 'half'"):
        make_method("delta:chosen=half")
    with pytest.raises(W2SError, match="expected one of weak, half"):
        make_method("delta:chosen=strong")
    steps = make_steps("delta:chosen=intermediate,rejected=weak")
    with pytest.raises(W2SError, match="set intermediate_models"):
        student_nodes(steps, Plan())
    student_nodes(steps, Plan(intermediate_models=1))
    student_nodes(make_steps("delta:chosen=student,shots=2,rejected=weak"), Plan())


@pytest.mark.slow
def test_easy_to_hard(tmp_path: Path) -> None:
    """The training follows the perplexity of the untrained student; another loss reuses it."""
    cfg = text_run(tmp_path, ["naive", "easy_to_hard:stages=4"])
    results = w2s_fast.run(cfg)
    (name,) = stage_names(results, "perplexity")
    values = np.load(folder_of(results, cfg, name) / PERPLEXITY)
    assert values.shape == (48,) and (values > 1).all() and len(set(values.tolist())) > 20
    logs = [
        json.loads((folder_of(results, cfg, f"student/0/{n}") / LOG).read_text())["losses"]
        for n in ("xent", "easy_to_hard:stages=4+xent")
    ]
    # The loss of the first step is the mean log-perplexity of its rows, which are easy ones.
    train = cfg.student_train
    for stages, log in zip((None, difficulty_stages(values, 4)), logs, strict=True):
        rows = RowOrder(48, train.batch_size, train.epochs, 0, stages).rows(0)
        assert log[0] == pytest.approx(np.log(values[rows]).mean(), abs=5e-4)
    assert logs[1][0] < logs[0][0] - 1e-3
    again = w2s_fast.run(dataclasses.replace(cfg, methods=("easy_to_hard:stages=2",)))
    assert changed(again) == {"student", "report"}


@pytest.mark.slow
def test_rounds_of_search_trees(tmp_path: Path) -> None:
    """Warm-up, two rounds; a third file computes one more round, an edit what follows it."""
    cfg = text_run(tmp_path, ["naive"])
    one, two = (write_trees(tmp_path / f"{i}.jsonl", cfg, str(i)) for i in (7, 8))
    method = f"tree_pairs:files={one};{two}"
    cfg = dataclasses.replace(cfg, methods=(method,))
    results = w2s_fast.run(cfg)
    reports = [row["report"] for row in results["text_labels"]]
    assert len(reports) == 2
    for report in reports:
        assert report["paired"] == 2 * report["trees"] == report["parents"] > 10
        assert "true answers" not in report  # of steps
        assert len(report["trees_of_other_prompts"]) + report["trees"] == 54
        assert len(report["items_without_tree"]) == 48 - report["trees"]
    students = stage_names(results, "student")
    assert len(students) == 3 and len(stage_names(results, "perplexity")) == 1
    assert not stage_names(results, "pair_logprob")  # SimPO has no reference
    third = write_trees(tmp_path / "9.jsonl", cfg, "9")
    more = dataclasses.replace(cfg, methods=(f"{method};{third}",))
    again = w2s_fast.run(more)["provenance"]["stages"]
    assert sum(not s["reused"] for s in again.values()) == 3  # text_labels, student, report
    write_trees(two, cfg, "6")
    again = w2s_fast.run(more)["provenance"]["stages"]
    new = [name.partition("/")[0] for name, s in again.items() if not s["reused"]]
    assert sorted(new) == ["report", "student", "student", "text_labels"]


def test_pairs_of_trees_follow_their_prefix(tmp_path: Path) -> None:
    cfg = text_run(tmp_path, ["naive"])
    path = write_trees(tmp_path / "t.jsonl", cfg)
    method: Any = make_method(f"tree_pairs:files={path}")
    labels = method.pairs(Prompts(["x", "y"], ["5 + 1 =", "6 + 1 ="]), seed=0)
    assert labels.rows.tolist() == [1, 1]
    assert list(labels.prefixes) == ["", " the sum is"]
    assert list(labels.chosen) == [" the sum is", " 7"]
    assert list(labels.rejected) == [" who knows", " 92"]
    assert labels.report["trees"] == 1 and labels.report["items_without_tree"] == ["x"]
    with pytest.raises(W2SError, match="no tree has the prompt of a transfer item"):
        method.pairs(Prompts(["x"], ["other"]), seed=0)


def test_faults_of_trees_end_the_run_before_anything_is_computed(tmp_path: Path) -> None:
    def refused(spec: str, match: str) -> None:
        with pytest.raises(W2SError, match=match):
            w2s_fast.run(text_run(tmp_path, [spec]))
        assert not (tmp_path / "out" / "cache").exists()

    refused("tree_pairs", "files is ''; expected paths")
    refused(f"tree_pairs:files={tmp_path}/no.jsonl", "no such file")
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    refused(f"tree_pairs:files={tmp_path}/bad.jsonl", "bad.jsonl: line 1 has the keys 'id'")
    refused("delta|easy_to_hard", "stages of completions, and the student's labels are pairs")
