"""SciQ: is this the right answer to a science question? (Welbl, Liu & Gardner 2017)."""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row


def format_row(row: Row, rng: Random) -> Item:
    """Show the correct answer or, as often, one of the three distractors."""
    label = int(rng.random() < 0.5)
    wrong = [row["distractor1"], row["distractor2"], row["distractor3"]]
    answer = row["correct_answer"] if label else rng.choice(wrong)
    return Item(f"Q: {row['question']} A: {answer}", label, row["question"])


_COLUMNS = ("question", "correct_answer", "distractor1", "distractor2", "distractor3")
_SAMPLES = (
    ("Which gas do green leaves take from the air?", "carbon dioxide", "argon", "neon", "helium"),
    ("What pulls a dropped stone to the ground?", "gravity", "friction", "magnetism", "sound"),
    ("What is frozen water called?", "ice", "steam", "fog", "brine"),
    ("Which organ pumps blood?", "the heart", "the liver", "the lung", "the skin"),
    ("What does a thermometer measure?", "temperature", "mass", "length", "charge"),
)
SCIQ = HubTask(
    name="sciq",
    repo="allenai/sciq",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
)
