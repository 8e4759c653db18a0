"""WiC: does a word have the same meaning in two sentences? (Pilehvar & Camacho-Collados 2019).

Rows about one word stay in one split. The test rows are the validation split, the only other one
with labels. The hub stores the set with a loading script, which is never run; the hub's own
conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show both sentences and the word; ``rng`` is not used."""
    text = (
        f"Sentence 1:\n{row['sentence1']}\n\nSentence 2:\n{row['sentence2']}\n\n"
        f'Q: Does "{row["word"]}" have the same meaning in the above sentences?'
    )
    return Item(text, class_index(row["label"], "label", 2), row["word"])


_COLUMNS = ("word", "sentence1", "sentence2", "label")
_SAMPLES = (
    ("spring", "The spring of the clock broke.", "Spring came late.", 0),
    ("spring", "We met in spring.", "Every spring the river floods.", 1),
    ("bank", "The bank lends money.", "My bank closed early.", 1),
    ("bank", "They sat on the bank of the canal.", "The bank raised its fees.", 0),
    ("carry", "Carry the box upstairs.", "She carried two bags.", 1),
)
WIC = HubTask(
    name="wic",
    repo="aps/super_glue",
    columns=_COLUMNS,
    class_names=("different", "same"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    test_split="validation",
    config="wic",
    revision="refs/convert/parquet",
    prompt="{text}\nAnswer:",
)
