"""Formatters of the named sets on their sample rows."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from task_data import HUB_TASKS

EXPECTED_TEXTS = {
    "sciq": "Q: What is frozen water called? A: ",
    "boolq": "Passage: Otters hunt in water and sleep on land. They eat fish, crabs and frogs.\n"
    "Question: do otters eat frogs",
    "cosmos_qa": "Context: My sister baked for hours. When the guests had gone, not a crumb was "
    "left.\nQuestion: Did the guests like it?\nAnswer: ",
    "amazon_polarity": "Could not stop reading The best story about lighthouses that I know.",
    "anthropic_hh": "\n\nHuman: Is it safe to mix cleaners?\n\nAssistant: ",
}


@pytest.mark.parametrize("name", HUB_TASKS)
def test_formatters_on_the_sample_rows(name: str) -> None:
    task = HUB_TASKS[name]
    assert len(task.samples) == 5
    assert all(set(row) == set(task.columns) for row in task.samples)
    one, two = task.examples(task.samples, 0), task.examples(task.samples, 0)
    assert one.texts == two.texts and one.texts[2].startswith(EXPECTED_TEXTS[name])
    reversed_rows = task.examples(task.samples[::-1], 0)
    assert reversed_rows.texts[::-1] == one.texts  # the coin is the row's own
    labels = [task.examples(task.samples, seed).labels for seed in range(40)]
    assert set(np.concatenate(labels)) == {0, 1}


@pytest.mark.parametrize(
    ("name", "answer_of"),
    [
        ("sciq", lambda row: row["correct_answer"]),
        ("cosmos_qa", lambda row: row[f"answer{row['label']}"]),
        ("anthropic_hh", lambda row: row["chosen"]),
    ],
)
def test_coin_shows_the_right_answer_iff_label_is_one(name: str, answer_of: object) -> None:
    task, seen = HUB_TASKS[name], set()
    for number in range(200):
        for row in task.samples:
            item = task.format(row, Random(number))
            right = answer_of(row)  # type: ignore[operator]
            assert item.text.endswith(right) == bool(item.label)
            seen.add((row[task.columns[0]], item.text))
    if name == "sciq":
        assert len(seen) == 5 * 4  # the right answer and each of the three distractors
    if name == "cosmos_qa":  # "none of the above" is never the answer that counts as right
        texts = [task.format(task.samples[3], Random(i)) for i in range(50)]
        assert {item.label for item in texts} == {0}


def test_labels_of_sets_without_a_coin() -> None:
    assert HUB_TASKS["boolq"].examples(HUB_TASKS["boolq"].samples, 0).labels.tolist() == [
        1, 0, 1, 0, 1
    ]  # fmt: skip
    amazon = HUB_TASKS["amazon_polarity"]
    assert amazon.examples(amazon.samples, 0).labels.tolist() == [1, 0, 1, 0, 1]


def test_questions_about_one_passage_are_related() -> None:
    for name in ("boolq", "cosmos_qa"):
        groups = HUB_TASKS[name].examples(HUB_TASKS[name].samples, 0).groups
        assert groups[0] == groups[1] != groups[2] == groups[3] != groups[4]
