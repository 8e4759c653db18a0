"""Cosmos QA: is this the right answer to a question about a short story? (Huang et al. 2019).

A row whose right answer is "None of the above choices ." has no answer to show as correct: it
always shows a wrong one. This unbalances the classes; the balanced draw corrects it. Questions
about one story stay in one split. The test rows are the validation split; the labels of the test
split were never published. The hub stores the set with a loading script, which is never run; the
hub's own conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index

_NONE = "None of the above choices ."


def format_row(row: Row, rng: Random) -> Item:
    """Show the right answer or, with equal probability, one of the others."""
    answers = [row[f"answer{number}"] for number in range(4)]
    right = answers[class_index(row["label"], "label", 4)]
    label = 0 if _NONE in right else int(rng.random() < 0.5)
    wrong = [answer for answer in answers if answer != right]
    answer = right if label or not wrong else rng.choice(wrong)
    text = f"Context: {row['context']}\nQuestion: {row['question']}\nAnswer: {answer}"
    return Item(text, label, row["context"])


_TRAIN = "We ran all the way, but the doors closed in front of us. The next one was at noon."
_CAKE = "My sister baked for hours. When the guests had gone, not a crumb was left."
_COLUMNS = ("context", "question", "answer0", "answer1", "answer2", "answer3", "label")
_SAMPLES = (
    (_TRAIN, "What did they miss?", "A train .", "A meal .", "A film .", _NONE, 0),
    (_TRAIN, "Why did they run?", "For sport .", "They were late .", "It rained .", _NONE, 1),
    (_CAKE, "Did the guests like it?", "No .", "They left it .", "Yes .", _NONE, 2),
    (_CAKE, "Who came?", "A thief .", "A doctor .", "A horse .", _NONE, 3),
    ("He sold the car and bought a bike.", "How does he travel now?", _NONE, "He rides .",
     "He drives .", "He flies .", 1),
)  # fmt: skip
COSMOS_QA = HubTask(
    name="cosmos_qa",
    repo="allenai/cosmos_qa",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    test_split="validation",
    revision="refs/convert/parquet",
)
