"""MultiRC: is this one of the right answers to a question about a passage? (Khashabi et al. 2018).

Questions about one passage stay in one split. The test rows are the validation split, the only
other one with labels. The hub stores the set with a loading script, which is never run; the hub's
own conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show passage, question and answer; ``rng`` is not used."""
    text = (
        f'Passage:\n\n{row["paragraph"]}\n\nQ: "{row["question"]}" Is the answer "{row["answer"]}"?'
    )
    return Item(text, class_index(row["label"], "label", 2), row["paragraph"])


_FERRY = "The ferry leaves at six and at ten. It carries cars, but no lorries."
_CAT = "Our cat sleeps on the boiler. In summer she prefers the stone step."
_COLUMNS = ("paragraph", "question", "answer", "label")
_SAMPLES = (
    (_FERRY, "When does the ferry leave?", "At ten", 1),
    (_FERRY, "What does it carry?", "Lorries", 0),
    (_CAT, "Where does the cat sleep?", "On the boiler", 1),
    (_CAT, "When does she like the step?", "In winter", 0),
    ("Rice grows in water here.", "What grows in water?", "Rice", 1),
)
MULTIRC = HubTask(
    name="multirc",
    repo="aps/super_glue",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    test_split="validation",
    config="multirc",
    revision="refs/convert/parquet",
    prompt="{text}\nAnswer:",
)
