"""QuAIL: is this the right answer to a question about a text? (Rogers et al. 2020).

Questions about one text stay in one split. The test rows are the validation split.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import as_list, right_answer, show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Ask about the right answer or, with equal probability, about one of the others."""
    answers = as_list(row["answers"], "answers")
    right = right_answer(answers, row["correct_answer_id"], "correct_answer_id")
    answer, label = show_answer(right, answers, rng)
    text = f'Passage:\n\n{row["context"]}\n\nQ: "{row["question"]}" Is the answer "{answer}"?'
    return Item(text, label, row["context"])


_HUT = "They reached the hut after dark. The door was open and the stove still warm."
_EXAM = "Rosa had not slept. The exam began in ten minutes and her pen was empty."
_COLUMNS = ("context", "question", "answers", "correct_answer_id")
_SAMPLES = (
    (_HUT, "When did they arrive?", ["at noon", "at night", "at dawn", "not said"], 1),
    (_HUT, "Who had been there?", ["someone", "nobody", "a bear", "a king"], 0),
    (_EXAM, "What does Rosa need?", ["a hat", "a dog", "a pen", "a boat"], 2),
    (_EXAM, "How old is she?", ["ten", "forty", "ninety", "not said"], 3),
    ("The baker closed early.", "Who closed?", ["the baker", "the bank", "a bar", "a zoo"], 0),
)
QUAIL = HubTask(
    name="quail",
    repo="textmachinelab/quail",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    test_split="validation",
    prompt="{text}\nAnswer:",
)
