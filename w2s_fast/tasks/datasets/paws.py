"""PAWS: do two sentences with much the same words have the same meaning? (Zhang, Baldridge & He
2019).

Rows with the same first sentence stay in one split.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show both sentences; ``rng`` is not used."""
    text = (
        f"Sent 1: {row['sentence1']}\nSent 2: {row['sentence2']}\n\n"
        "Q: Are these sentences semantically equivalent?"
    )
    return Item(text, class_index(row["label"], "label", 2), row["sentence1"])


_TRAIN = "The train runs from Bergen to Oslo."
_RIVER = "The river is wider but slower than the canal."
_SAMPLES = (
    (_TRAIN, "The train runs from Oslo to Bergen.", 0),
    (_TRAIN, "From Bergen the train runs to Oslo.", 1),
    (_RIVER, "The canal is wider but slower than the river.", 0),
    (_RIVER, "The river is slower but wider than the canal.", 1),
    ("Anna taught Boris in 1950.", "In 1950, Anna taught Boris.", 1),
)
PAWS = HubTask(
    name="paws",
    repo="google-research-datasets/paws",
    columns=("sentence1", "sentence2", "label"),
    class_names=("different", "equivalent"),
    format=format_row,
    samples=tuple({"sentence1": a, "sentence2": b, "label": y} for a, b, y in _SAMPLES),
    config="labeled_final",
    prompt="{text}\nAnswer:",
)
