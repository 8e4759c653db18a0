"""PIQA: is this the right way to reach a goal? (Bisk et al. 2020).

The test rows are the validation split, the only other one with labels. The hub stores the set with
a loading script, which is never run; the hub's own conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import right_answer, show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Show the right solution or, with equal probability, the other one."""
    both = [row["sol1"], row["sol2"]]
    answer, label = show_answer(right_answer(both, row["label"], "label"), both, rng)
    return Item(f"Q: {row['goal']} A: {answer}", label, row["goal"])


_COLUMNS = ("goal", "sol1", "sol2", "label")
_SAMPLES = (
    ("To open a tight jar,", "grip the lid with a rubber glove.", "grip it with butter.", 0),
    ("To keep apples from browning,", "leave them in the sun.", "add lemon juice.", 1),
    ("To find a stud in a wall,", "pull a magnet along it.", "pour water on it.", 0),
    ("To dry wet shoes,", "fill them with more water.", "fill them with newspaper.", 1),
    ("To cut a round cake evenly,", "cut through its centre.", "cut off its rim.", 0),
)
PIQA = HubTask(
    name="piqa",
    repo="ybisk/piqa",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    test_split="validation",
    revision="refs/convert/parquet",
)
