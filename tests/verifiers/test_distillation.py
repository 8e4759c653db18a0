"""Distilled rows: joined to their soft labels, split by problem, and learned by a student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.planted_verifiers import planted_verifiers
from scipy.special import expit

from w2s_fast import ModelConfig, TaskConfig, TrainConfig, make_loss
from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError
from w2s_fast.integrations.batches import read_labels
from w2s_fast.label_models import DawidSkene
from w2s_fast.models import build_model
from w2s_fast.models.text_tokenizer import train_tokenizer
from w2s_fast.tasks import TaskData, get_task
from w2s_fast.training import encode, predict, train

SIZES: dict[str, Any] = {"n_weak": 40, "n_transfer": 280, "n_test": 160}


def load(path: Path, rows: list[dict[str, Any]]) -> TaskData:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(
        "local", str(path), text_pair="text_pair", group="group", balance=False, **SIZES
    )
    return get_task("local").load(config, seed=0)


def test_rows_have_the_texts_the_soft_label_and_the_problem() -> None:
    rows = V.distillation_rows(
        [7, 7, "x"], ["Q7", "Q7", "Qx"], ["a", "b", "c"], [0.25, 1, 0.5], [1, 0, 2]
    )
    assert [row["probs"] for row in rows] == [[0.75, 0.25], [0, 1], [0.5, 0.5]]
    assert [row["label"] for row in rows] == [0, 1, 0]
    assert [row["weight"] for row in rows] == [1, 0, 2]
    assert [row["group"] for row in rows] == ["7", "7", "x"]
    assert [(row["text"], row["text_pair"]) for row in rows] == [
        ("Q7", "a"), ("Q7", "b"), ("Qx", "c"),
    ]  # fmt: skip
    assert {row["weight"] for row in V.distillation_rows([1], ["Q"], ["a"], [0.5])} == {1}


def test_soft_labels_join_the_task_and_no_problem_is_in_two_splits(tmp_path: Path) -> None:
    """Equal texts too: the second response "same" of a problem has a row of its own."""
    rng = np.random.default_rng(0)
    problems = np.repeat(np.arange(120), 4)
    prompts = [f"question {p % 60}" for p in problems]  # two problems share a prompt
    responses = [f"{'same' if i % 4 < 2 else i}" for i in range(480)]
    p = rng.random(480)
    rows = V.distillation_rows(problems, prompts, responses, p, weight=rng.random(480))
    data = load(tmp_path / "rows.jsonl", rows)
    assert data.class_names == ("0", "1")
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == 480
    seen: list[set[str]] = []
    for split in (data.weak, data.transfer, data.test):
        labels = read_labels(tmp_path / "rows.jsonl", ids=split.ids)
        own = [by_id[name] for name in split.ids]
        assert [row["text_pair"] for row in own] == list(split.pairs or ())
        np.testing.assert_array_equal(labels.probs, np.float32([row["probs"] for row in own]))
        np.testing.assert_array_equal(labels.weight, np.float32([row["weight"] for row in own]))
        np.testing.assert_array_equal(split.labels, [row["label"] for row in own])
        seen.append({row["group"] for row in own})
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"probs": [0.5, 1.5]}, r"probs\[1\] is 1.5; expected a probability.*logistic"),
        ({"probs": [-0.1, 0.5]}, r"probs\[0\] is -0.1"),
        ({"probs": [0.5, np.nan]}, "for row 1 is nan"),
        ({"weight": [1, -1]}, r"weight\[1\] is -1; expected a number of at least 0"),
        ({"weight": [1]}, "weight has 1 numbers for 2 rows"),
        ({"prompts": ["Q"]}, "prompts has 1 texts for 2 rows; expected one for each"),
        ({"prompts": "QQ"}, "prompts: 'QQ'; expected a sequence"),
        ({"responses": ["a", " "]}, r"responses\[1\] is ' '; expected a text"),
        ({"responses": ["a", None]}, r"responses\[1\] is None"),
        ({"problems": ["p", ""]}, r"problems\[1\] is ''; expected a name"),
    ],
)
def test_wrong_rows_are_named(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "problems": ["p", "p"], "prompts": ["Q", "Q"], "responses": ["a", "b"],
        "probs": [0.5, 0.5], **changed,
    }  # fmt: skip
    with pytest.raises(W2SError, match=message):
        V.distillation_rows(**arguments)


@pytest.mark.slow
def test_a_student_of_soft_labels_selects_on_new_problems(tmp_path: Path) -> None:
    """The right responses have a word of their own, which the student learns from weak labels."""
    planted = planted_verifiers(n=120, responses=4, m=5, seed=1)
    rng = np.random.default_rng(0)
    votes = V.binarize(planted.scores, 0.5)
    model = DawidSkene(2).fit(votes)
    log_odds = V.weaver_log_odds(votes, model.prior, model.rates)
    word = np.where(
        planted.gold, rng.choice(["hence", "because"], 480), rng.choice(["maybe", "perhaps"], 480)
    )
    rows = V.distillation_rows(
        planted.problems,
        [f"question {p}" for p in planted.problems],
        [f"response {i}: {w} it has" for i, w in enumerate(word)],
        expit(log_odds),
    )
    data = load(tmp_path / "rows.jsonl", rows)
    labels = read_labels(tmp_path / "rows.jsonl", ids=data.transfer.ids)
    tokenizer = train_tokenizer([*data.transfer.texts, *(data.transfer.pairs or ())])
    student = build_model(ModelConfig("scratch", hidden=32, layers=1), 2, tokenizer, seed=0)
    train(
        student, encode(tokenizer, data.transfer), labels.probs, make_loss("xent"),
        TrainConfig(epochs=4, lr=5e-3, batch_size=16), seed=0, weight=labels.weight,
    )  # fmt: skip
    row_of = {row["id"]: i for i, row in enumerate(rows)}
    test = [row_of[name] for name in data.test.ids]
    scores = predict(student, encode(tokenizer, data.test))[:, 1]
    of_test = planted.problems[test], planted.gold[test]
    accuracy = V.selection_accuracy(scores, *of_test)
    assert accuracy > V.selection_accuracy(log_odds[test], *of_test) + 0.02
    assert accuracy > V.selection_accuracy(np.zeros(160), *of_test) + 0.2  # a choice at random
