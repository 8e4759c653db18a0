"""SST-2: is this phrase of a film review positive? (Socher et al. 2013).

The training rows are phrases, and the set does not say which come from one sentence, so related
rows may be in two splits. The test rows are the validation split, the only other one with labels.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show the phrase; ``rng`` is not used."""
    return Item(row["sentence"], class_index(row["label"], "label", 2), row["sentence"])


_SAMPLES = (
    (1, "a quiet film that stays with you"),
    (0, "two hours of doors opening and closing"),
    (1, "funny , warm and never a minute too long"),
    (0, "the jokes arrive late and leave early"),
    (1, "the best lighthouse picture in years"),
)
SST2 = HubTask(
    name="sst2",
    repo="stanfordnlp/sst2",
    columns=("sentence", "label"),
    class_names=("negative", "positive"),
    format=format_row,
    samples=tuple({"label": y, "sentence": s} for y, s in _SAMPLES),
    test_split="validation",
    prompt="Review: {text}\nSentiment:",
    words=(" negative", " positive"),
)
