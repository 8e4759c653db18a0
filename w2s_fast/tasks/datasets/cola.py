"""CoLA: is this sentence acceptable English? (Warstadt, Singh & Bowman 2019).

About 70 % are; the balanced draw corrects this. The test rows are the validation split, the only
other one with labels.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show the sentence; ``rng`` is not used."""
    return Item(row["sentence"], class_index(row["label"], "label", 2), row["sentence"])


_SAMPLES = (
    (1, "The gardener watered the roses before noon."),
    (0, "The gardener watered the roses before noon the."),
    (1, "Which of the boats did they repaint?"),
    (0, "Which did they repaint of boats the?"),
    (1, "Nobody remembers who locked the shed."),
)
COLA = HubTask(
    name="cola",
    repo="nyu-mll/glue",
    columns=("sentence", "label"),
    class_names=("unacceptable", "acceptable"),
    format=format_row,
    samples=tuple({"label": y, "sentence": s} for y, s in _SAMPLES),
    test_split="validation",
    config="cola",
    prompt="{text}\nIs this sentence grammatical?",
)
