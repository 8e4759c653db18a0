"""OpenBookQA: is this the right answer to an elementary science question? (Mihaylov et al. 2018).

EleutherAI/w2s shows a right answer by its letter and a wrong one by its text, which gives the class
away; here both are shown as "B) text".
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import choices_by_letter, right_answer, show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Show all choices, then the right one or, with equal probability, one of the others."""
    choices = {k: f"{k}) {v}" for k, v in choices_by_letter(row["choices"], "choices").items()}
    right = right_answer(choices, row["answerKey"], "answerKey")
    answer, label = show_answer(right, list(choices.values()), rng)
    options = "\n".join(choices.values())
    text = f"Q: {row['question_stem']}\n\nChoices:\n{options}\n\nAnswer: {answer}"
    return Item(text, label, row["question_stem"])


_SAMPLES = (
    ("A metal spoon in hot soup becomes", "hot", "soft", "blue", "longer by a metre", "A"),
    ("Owls find mice at night by", "smell alone", "hearing", "asking", "luck", "B"),
    ("A puddle vanishes on a sunny day as it", "burns", "rusts", "evaporates", "shrinks", "C"),
    ("Which of these is renewable?", "coal", "oil", "gas", "wind", "D"),
    ("A seed needs to sprout", "water", "music", "paper", "salt", "A"),
)
OPENBOOKQA = HubTask(
    name="openbookqa",
    repo="allenai/openbookqa",
    columns=("question_stem", "choices", "answerKey"),
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(
        {
            "question_stem": stem,
            "choices": {"text": choices, "label": ["A", "B", "C", "D"]},
            "answerKey": key,
        }
        for stem, *choices, key in _SAMPLES
    ),
    config="main",
)
