"""MC-TACO: is this a plausible answer to a question about time? (Zhou et al. 2019).

The set has no training split: as in EleutherAI/w2s, weak and transfer rows come from the test
split, the larger one, and test rows from the validation split. Questions about one sentence stay in
one split. The hub stores the set with a loading script, which is never run; the hub's own
conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show sentence, question and answer; ``rng`` is not used."""
    text = f"{row['sentence']}\n\nGiven the above, {row['question']} Is the answer {row['answer']}?"
    return Item(text, class_index(row["label"], "label", 2), row["sentence"])


_BREAD = "Irma put the bread in the oven and set the table."
_MOVE = "Last year the Kovacs moved to the coast."
_COLUMNS = ("sentence", "question", "answer", "label")
_SAMPLES = (
    (_BREAD, "How long does the bread bake?", "forty minutes", 1),
    (_BREAD, "How long does it take to set the table?", "two weeks", 0),
    (_MOVE, "How often do they move?", "twice a day", 0),
    (_MOVE, "When did they move?", "in spring", 1),
    ("The meeting began at nine.", "What came before it?", "they said goodbye", 0),
)
MC_TACO = HubTask(
    name="mc_taco",
    repo="CogComp/mc_taco",
    columns=_COLUMNS,
    class_names=("implausible", "plausible"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    train_split="test",
    test_split="validation",
    revision="refs/convert/parquet",
    prompt="{text}\nAnswer:",
)
