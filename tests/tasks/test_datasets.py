"""Formatters of the named sets on their sample rows."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from helpers.task_data import HUB_TASKS, fails

from w2s_fast.tasks._hub import Row
from w2s_fast.tasks._multiple_choice import show_answer

# How the third sample reads, up to what a coin decides.
EXPECTED_TEXTS = {
    "sciq": "Q: What is frozen water called? A: ",
    "sciq_with_support": "Passage:\nWater freezes at 0 degrees Celsius. The solid, ice, floats "
    'because it is less dense.\n\nQ: "What is frozen water called?" Is the answer "',
    "boolq": "Passage: Otters hunt in water and sleep on land. They eat fish, crabs and frogs.\n"
    "Question: do otters eat frogs",
    "cosmos_qa": "Context: My sister baked for hours. When the guests had gone, not a crumb was "
    "left.\nQuestion: Did the guests like it?\nAnswer: ",
    "amazon_polarity": "Could not stop reading The best story about lighthouses that I know.",
    "anthropic_hh": "\n\nHuman: Is it safe to mix cleaners?\n\nAssistant: ",
    "anli_r2": "Premise: The band has four members. Two of them are sisters who grew up in Malta."
    "\nHypothesis: The sisters sing.\n\nDoes the premise entail the hypothesis?",
    "cola": "Which of the boats did they repaint?",
    "dream": "M: Two for the late show.\nW: Only the front row is left.\nM: We'll take it.\n\n"
    "Q: Where will they sit? A: ",
    "ethics_deontology": "Q: Is the following a morally valid excuse?\n\nShouldn't you clean the "
    "kitchen today?\n\nNo, because I like the colour green.\n\nA:",
    "ethics_justice": "Q: Does this statement exemplify justice?\n\nI used to wave to my neighbour "
    "but I stopped because he moved to another street.\n\nA:",
    "ethics_virtue": "Q: Does this behavior match the adjective that follows?\n\nTom jumped from "
    "the cliff to impress the others. [SEP] reckless\n\nA:",
    "ethics_utilitarianism": "Which is more pleasant?\n1) I made a pot of tea for us.",
    "hellaswag": "Context:\nA man turns his bicycle upside down. He\n\nContinuations:\n\nsings to "
    'it.\nswims off.\ntakes off a wheel.\nfalls upwards.\n\nQ: Is "',
    "mc_taco": "Last year the Kovacs moved to the coast.\n\nGiven the above, How often do they "
    "move? Is the answer twice a day?",
    "multirc": "Passage:\n\nOur cat sleeps on the boiler. In summer she prefers the stone step.\n\n"
    'Q: "Where does the cat sleep?" Is the answer "On the boiler"?',
    "openbookqa": "Q: A puddle vanishes on a sunny day as it\n\nChoices:\nA) burns\nB) rusts\n"
    "C) evaporates\nD) shrinks\n\nAnswer: ",
    "paws": "Sent 1: The river is wider but slower than the canal.\nSent 2: The canal is wider but "
    "slower than the river.\n\nQ: Are these sentences semantically equivalent?",
    "piqa": "Q: To find a stud in a wall, A: p",
    "quail": "Passage:\n\nRosa had not slept. The exam began in ten minutes and her pen was empty."
    '\n\nQ: "What does Rosa need?" Is the answer "a ',
    "quartz": "Passage:\nA shorter string sounds higher than a longer one.\n\n"
    'Q: "Ali shortens the string. Its sound is now" Is the answer "',
    "social_i_qa": "Context:\nJan won the prize that Eva had hoped for.\n\nQuestion: "
    '"How does Eva feel?"\n\nChoices:\nsleepy\nproud of herself\ndisappointed\n\nIs the answer "',
    "sst2": "funny , warm and never a minute too long",
    "twitter_sentiment": "@sam thanks for the soup, you saved my week",
    "wic": "Sentence 1:\nThe bank lends money.\n\nSentence 2:\nMy bank closed early.\n\n"
    'Q: Does "bank" have the same meaning in the above sentences?',
    "hh_rlhf": "\n\nHuman: How tall is a giraffe?\n\nAssistant: ",
    "gsm8k": "Question: Half of the 30 pupils walk to school, 8 cycle. How many do neither?\n"
    "Answer:",
    "wts_legal": "Question: How long does it take to delete my account?\nClause: You may ask us to "
    "delete your account; we do so within thirty days.",
}
# Sets whose labels stand in the file: those of the samples.
FIXED_LABELS = {
    "boolq": [1, 0, 1, 0, 1],
    "amazon_polarity": [1, 0, 1, 0, 1],
    "anli_r2": [1, 0, 0, 1, 0],
    "cola": [1, 0, 1, 0, 1],
    "ethics_deontology": [1, 0, 0, 1, 1],
    "ethics_justice": [1, 0, 1, 0, 1],
    "ethics_virtue": [1, 0, 1, 0, 0],
    "mc_taco": [1, 0, 0, 1, 0],
    "multirc": [1, 0, 1, 0, 1],
    "paws": [0, 1, 0, 1, 1],
    "sst2": [1, 0, 1, 0, 1],
    "twitter_sentiment": [1, 0, 1, 0, 1],
    "wic": [0, 1, 1, 0, 1],
    "wts_legal": [1, 0, 1, 0, 1],
    "gsm8k": [0] * 5,
}


def _by_letter(row: Row) -> str:
    return row["choices"]["text"]["ABCD".index(row["answerKey"])]


# Sets that show an answer by a coin: how a text ends that shows the right one.
RIGHT_ENDINGS: dict[str, Callable[[Row], str]] = {
    "sciq": lambda row: row["correct_answer"],
    "sciq_with_support": lambda row: f'"{row["correct_answer"]}"?',
    "cosmos_qa": lambda row: row[f"answer{row['label']}"],
    "anthropic_hh": lambda row: row["chosen"],
    "dream": lambda row: row["answer"],
    "hellaswag": lambda row: f'"{row["endings"][int(row["label"])]}" the best continuation?',
    "openbookqa": lambda row: f"{row['answerKey']}) {_by_letter(row)}",
    "piqa": lambda row: row[f"sol{row['label'] + 1}"],
    "quail": lambda row: f'"{row["answers"][row["correct_answer_id"]]}"?',
    "quartz": lambda row: f'"{_by_letter(row)}"?',
    "social_i_qa": lambda row: f'"{row["answer" + " ABC"[int(row["label"])]]}"?',
}
# Sets with two rows of one passage, two of another and one of a third.
GROUPED = [
    *("boolq", "cosmos_qa", "anli_r2", "dream", "ethics_deontology", "ethics_justice"),
    *("ethics_virtue", "ethics_utilitarianism", "hellaswag", "mc_taco", "multirc", "paws"),
    *("quail", "quartz", "social_i_qa", "wic", "wts_legal"),
]


def test_the_tables_hold_every_set() -> None:
    assert set(EXPECTED_TEXTS) == set(HUB_TASKS)
    assert {*FIXED_LABELS, *RIGHT_ENDINGS, "ethics_utilitarianism", "hh_rlhf"} == set(HUB_TASKS)


@pytest.mark.parametrize("name", HUB_TASKS)
def test_formatters_on_the_sample_rows(name: str) -> None:
    task = HUB_TASKS[name]
    assert task.name == name and len(task.samples) == 5
    assert all(set(row) == set(task.columns) for row in task.samples)
    one, two = task.examples(task.samples, 0), task.examples(task.samples, 0)
    assert one.texts == two.texts and one.texts[2].startswith(EXPECTED_TEXTS[name])
    reversed_rows = task.examples(task.samples[::-1], 0)
    assert reversed_rows.texts[::-1] == one.texts  # the coin is the row's own
    labels = [task.examples(task.samples, seed).labels for seed in range(40)]
    assert set(np.concatenate(labels)) == ({0} if task.kind == "generation" else {0, 1})
    assert task.kind != "classification" or len(task.words) == len(task.class_names)


@pytest.mark.parametrize("name", RIGHT_ENDINGS)
def test_coin_shows_the_right_answer_iff_label_is_one(name: str) -> None:
    task, seen = HUB_TASKS[name], set()
    for number in range(200):
        for row in task.samples:
            item = task.format(row, Random(number))
            assert item is not None
            assert item.text.endswith(RIGHT_ENDINGS[name](row)) == bool(item.label)
            seen.add((str(row[task.columns[0]]), item.text))
    if name == "sciq":
        assert len(seen) == 5 * 4  # the right answer and each of the three distractors
    if name == "cosmos_qa":  # "none of the above" is never the answer that counts as right
        texts = [task.format(task.samples[3], Random(i)) for i in range(50)]
        assert {item.label for item in texts if item} == {0}


@pytest.mark.parametrize("name", FIXED_LABELS)
def test_labels_of_sets_without_a_coin(name: str) -> None:
    task = HUB_TASKS[name]
    assert task.examples(task.samples, 0).labels.tolist() == FIXED_LABELS[name]


def test_the_more_pleasant_situation_is_right_in_either_place() -> None:
    task, seen = HUB_TASKS["ethics_utilitarianism"], set()
    for number in range(40):
        item = task.format(task.samples[4], Random(number))
        assert item is not None
        first = item.text.splitlines()[1] == "1) My plant has a new leaf."
        shown = int(item.text[-1])
        assert item.label == ((shown == 1) == first)
        seen.add((first, shown))
    assert len(seen) == 4


@pytest.mark.parametrize("name", GROUPED)
def test_questions_about_one_passage_are_related(name: str) -> None:
    groups = HUB_TASKS[name].examples(HUB_TASKS[name].samples, 0).groups
    assert groups[0] == groups[1] != groups[2] == groups[3] != groups[4] != groups[0]


def test_a_missing_passage_relates_nothing() -> None:
    task = HUB_TASKS["sciq_with_support"]
    groups = task.examples(task.samples, 0).groups
    assert groups[2] == groups[4] and len(set(groups)) == 4


def test_an_answer_like_the_right_one_is_never_wrong() -> None:
    shown = [show_answer("ice", ["ice", "fog", "ice"], Random(i)) for i in range(50)]
    assert set(shown) == {("ice", 1), ("fog", 0)}
    assert {show_answer("ice", ["ice"], Random(i)) for i in range(50)} == {("ice", 1)}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("hellaswag", {"label": ""}, ("label is ''", "0, 1, 2, 3", "labelled split")),
        ("hellaswag", {"endings": "a b"}, ("endings is a str", ".parquet or .jsonl")),
        ("piqa", {"label": -1}, ("label is -1", "labelled split")),
        ("social_i_qa", {"label": "0"}, ("label is '0'", "1, 2, 3")),
        ("openbookqa", {"answerKey": "E"}, ("answerKey is 'E'", "A, B, C, D")),
        ("quartz", {"choices": ["a", "b"]}, ("choices is ['a', 'b']", "'text'")),
        ("gsm8k", {"answer": "It is cold."}, ("holds no number", "#### n")),
        ("wts_legal", {"answer": "Maybe"}, ("answer is 'Maybe'", "Relevant or Irrelevant")),
        ("anli_r2", {"label": 3}, ("label is 3", "0, 1, 2")),
    ],
)
def test_values_that_do_not_fit(name: str, change: dict[str, Any], words: tuple[str, ...]) -> None:
    task = HUB_TASKS[name]
    fails(lambda: task.examples([{**task.samples[0], **change}], 0), f"{name}: ", *words)
