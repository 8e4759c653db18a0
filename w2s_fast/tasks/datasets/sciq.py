"""SciQ: is this the right answer to a science question? (Welbl, Liu & Gardner 2017).

`sciq_with_support` also shows the passage that the question was written from, if there is one.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Show the correct answer or, with equal probability, one of the three distractors."""
    answer, label = _shown(row, rng)
    return Item(f"Q: {row['question']} A: {answer}", label, row["question"])


def format_with_support(row: Row, rng: Random) -> Item:
    """Ask the same about a passage; questions about one passage are related."""
    answer, label = _shown(row, rng)
    text = f'Passage:\n{row["support"]}\n\nQ: "{row["question"]}" Is the answer "{answer}"?'
    return Item(text, label, row["support"].strip() or row["question"])


def _shown(row: Row, rng: Random) -> tuple[str, int]:
    return show_answer(row["correct_answer"], [row[f"distractor{i}"] for i in (1, 2, 3)], rng)


_COLUMNS = ("question", "correct_answer", "distractor1", "distractor2", "distractor3")
_SAMPLES = (
    ("Which gas do green leaves take from the air?", "carbon dioxide", "argon", "neon", "helium"),
    ("What pulls a dropped stone to the ground?", "gravity", "friction", "magnetism", "sound"),
    ("What is frozen water called?", "ice", "steam", "fog", "brine"),
    ("Which organ pumps blood?", "the heart", "the liver", "the lung", "the skin"),
    ("What does a thermometer measure?", "temperature", "mass", "length", "charge"),
)
_WATER = "Water freezes at 0 degrees Celsius. The solid, ice, floats because it is less dense."
_SUPPORT = ("Leaves take carbon dioxide from the air and give off oxygen.", "", _WATER, "", _WATER)
SCIQ = HubTask(
    name="sciq",
    repo="allenai/sciq",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
)
SCIQ_WITH_SUPPORT = HubTask(
    name="sciq_with_support",
    repo="allenai/sciq",
    columns=(*_COLUMNS, "support"),
    class_names=("wrong", "correct"),
    format=format_with_support,
    samples=tuple({**row, "support": s} for row, s in zip(SCIQ.samples, _SUPPORT, strict=True)),
    prompt="{text}\nAnswer:",
)
