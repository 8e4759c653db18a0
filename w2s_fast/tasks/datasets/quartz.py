"""QuaRTz: is this the right answer to a question about a relation? (Tafjord et al. 2019).

Questions about one statement stay in one split.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import choices_by_letter, right_answer, show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Ask about the right answer or, with equal probability, about the other one."""
    choices = choices_by_letter(row["choices"], "choices")
    right = right_answer(choices, row["answerKey"], "answerKey")
    answer, label = show_answer(right, list(choices.values()), rng)
    text = f'Passage:\n{row["para"]}\n\nQ: "{row["question"]}" Is the answer "{answer}"?'
    return Item(text, label, row["para"])


_SLOPE = "The steeper a slope, the faster a ball rolls down."
_STRING = "A shorter string sounds higher than a longer one."
_SAMPLES = (
    (_SLOPE, "On the steep hill the ball rolls", "faster", "slower", "A"),
    (_SLOPE, "Kim wants a slow ball, so the hill should be", "steep", "flat", "B"),
    (_STRING, "Ali shortens the string. Its sound is now", "lower", "higher", "B"),
    (_STRING, "For a low sound the string should be", "long", "short", "A"),
    ("Dry wood burns better than wet wood.", "Which burns worse?", "wet wood", "dry wood", "A"),
)
QUARTZ = HubTask(
    name="quartz",
    repo="allenai/quartz",
    columns=("para", "question", "choices", "answerKey"),
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(
        {
            "para": para,
            "question": question,
            "choices": {"text": choices, "label": ["A", "B"]},
            "answerKey": key,
        }
        for para, question, *choices, key in _SAMPLES
    ),
    prompt="{text}\nAnswer:",
)
