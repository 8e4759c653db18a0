"""Whole runs of the other kinds of task: preferences between two answers, and answers in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.colours import COLOURS, Colours, save_language_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from w2s_fast.config import RunConfig, from_dict
from w2s_fast.errors import W2SError
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import read_texts, write_texts
from w2s_fast.pipeline.export import export
from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.tasks import Examples, TaskConfig


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("lm"))


def test_an_item_that_parts_have_twice_is_an_error(tmp_path: Path) -> None:
    for part, text in (("part-0.parquet", "yes"), ("part-0 (copy).parquet", "no")):
        write_texts(tmp_path / part, ["a", "b"], [text, text])
    with pytest.raises(W2SError, match="has 4 items where 2 were expected"):
        read_texts(tmp_path, ["a", "b"])


def config(out: Path, lm: Path, **changes: Any) -> RunConfig:
    recipe = {"epochs": 16, "lr": 0.01, "batch_size": 16, "checkpoint_every": 4}
    values = {
        "task": {"name": "helpers.colours:Colours", "n_weak": 10, "n_transfer": 96, "n_test": 64,
                 "answer_tokens": 3},
        "weak": {"source": "scratch", "hidden": 16, "heads": 2},
        "student": {"source": str(lm)},
        "weak_train": recipe,
        "student_train": recipe,
        "losses": ["xent"],
        "seeds": [0],
        "output_dir": str(out),
        "workers": 1,
        "threads": 1,
    }  # fmt: skip
    return from_dict({**values, **changes})


@pytest.mark.slow
def test_answers_in_words_from_weak_labels_to_pgr(tmp_path: Path, lm: Path) -> None:
    cfg = config(tmp_path, lm, methods=["naive", "strong_to_strong", "generative_finetuning"])
    results = run(cfg)
    first = results["runs"][0]
    assert [r["name"] for r in results["runs"]] == [
        "xent", "strong_to_strong+xent", "generative_finetuning+xent"
    ]  # fmt: skip
    assert first["ceiling"] > 0.9 > first["weak"] > 0.25, first
    assert first["weak_label_accuracy"] > 0.25 and first["student_auroc"] is None
    stages = results["provenance"]["stages"]
    labels = read_texts(
        cfg.store_dir / stages["labels/0"]["folder"] / "labels", [f"t{i}" for i in range(96)]
    )
    truth = [f" {COLOURS[int(t.split('thing')[1].split()[0]) % 4]}" for t in _transfer(cfg).texts]
    right = np.mean([a.strip() == b.strip() for a, b in zip(labels.values(), truth, strict=True)])
    assert first["weak_label_accuracy"] == pytest.approx(right)
    export(cfg, "ceiling/0", tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    wrote = model.generate(**tokenizer("the thing5 is", return_tensors="pt"), max_new_tokens=1)
    assert tokenizer.decode(wrote[0, -1]) == COLOURS[5 % 4]


def _transfer(cfg: RunConfig) -> Examples:
    return Colours().load(cfg.task, 0).transfer


def test_a_method_for_classes_is_refused_before_anything_is_computed(
    tmp_path: Path, lm: Path
) -> None:
    with pytest.raises(
        W2SError, match="'early_stop' works on tasks of kind classification, preference"
    ):
        run(config(tmp_path, lm, methods=["early_stop"]))
    assert not any(tmp_path.glob("cache/*-*"))


@pytest.mark.parametrize(("old", "new"), [("classes", "classification"), ("answers", "generation")])
def test_a_renamed_kind_names_its_successor(old: str, new: str) -> None:
    with pytest.raises(W2SError, match=f"'{old}' is unknown; .*it is now called '{new}'"):
        task_kind(old)


def test_nothing_said_is_never_right(tmp_path: Path) -> None:
    data = Colours().load(TaskConfig(n_weak=2, n_transfer=2, n_test=4), 0)
    empty = replace(data.test, answers=("", "", " red", " red"))
    write_texts(tmp_path / "t.parquet", data.test.ids, ["", "red", " red ", "blue"])
    predictions = task_kind("generation").read(tmp_path / "t.parquet", empty, data)
    assert (
        predictions.right.tolist() == [False, False, True, False] and predictions.accuracy == 0.25
    )
    assert Predictions(np.array([1, 0]), np.array([1, 1]), np.eye(2)[[1, 0]]).right.tolist() == [
        True,
        False,
    ]


def test_words_can_be_judged_by_a_scorer(tmp_path: Path) -> None:
    data = Colours().load(TaskConfig(n_weak=2, n_transfer=2, n_test=4), 0)
    write_texts(tmp_path / "t.parquet", data.test.ids, [" red", " RED", " rED", ""])
    loud = replace(data, harm_score=lambda texts: [t.strip().isupper() for t in texts])
    predictions = task_kind("generation").read(tmp_path / "t.parquet", data.test, loud)
    assert predictions.right.tolist() == [True, False, True, True]
    assert predictions.scores()["harm_score"] == 0.25 and predictions.scores()["f1"] is None
    half = replace(data, harm_score=lambda texts: [0.5] * len(texts))
    assert not task_kind("generation").read(tmp_path / "t.parquet", data.test, half).right.any()
    wild = replace(data, harm_score=lambda texts: [2.0] * len(texts))
    with pytest.raises(W2SError, match=r"outside \[0, 1\]"):
        task_kind("generation").read(tmp_path / "t.parquet", data.test, wild)


@pytest.mark.slow
def test_a_reward_model_learns_soft_preferences(tmp_path: Path, lm: Path) -> None:
    rows = [
        {"prompt": f"the thing{i % 16} is", "chosen": f" good thing{i % 7}",
         "rejected": f" bad thing{i % 5}"}
        for i in range(400)
    ]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "pairs", "path": str(path), "n_weak": 40, "n_transfer": 64, "n_test": 40}
    cfg = config(tmp_path / "out", lm, task=task, losses=["xent", "logconf"],
                 methods=["naive", "confident"])  # fmt: skip
    results = run(cfg)
    assert {r["ceiling"] for r in results["runs"]} == {1.0}
    assert all(r["student"] > 0.9 for r in results["runs"])
    export(cfg, "student/0/xent", tmp_path / "exported")
    head = load_file(tmp_path / "exported" / "head.safetensors")
    assert {k: tuple(v.shape) for k, v in head.items()} == {"weight": (1, 32)}
