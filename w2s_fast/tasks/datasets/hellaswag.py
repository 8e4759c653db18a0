"""HellaSwag: is this the best continuation of a scene? (Zellers et al. 2019).

All four endings are shown, then one of them as the answer, as in EleutherAI/w2s. The test rows are
the validation split, the only other one with labels. Scenes of one video or article stay in one
split. The hub's own conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import as_list, right_answer, show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Ask about the right ending or, with equal probability, about one of the others."""
    endings = as_list(row["endings"], "endings")
    answer, label = show_answer(right_answer(endings, row["label"], "label"), endings, rng)
    options = "\n".join(endings)
    text = (
        f"Context:\n{row['ctx']}\n\nContinuations:\n\n{options}\n\n"
        f'Q: Is "{answer}" the best continuation?'
    )
    return Item(text, label, row["source_id"])


_KITE = "A girl runs along the beach with a kite. She"
_BIKE = "A man turns his bicycle upside down. He"
_COLUMNS = ("ctx", "source_id", "endings", "label")
_SAMPLES = (
    (_KITE, "v1", ["lets out the string.", "eats the kite.", "opens a bank.", "paints."], "0"),
    (_KITE, "v1", ["is a fish.", "looks up as it rises.", "reads to it.", "boils the sand."], "1"),
    (_BIKE, "v2", ["sings to it.", "swims off.", "takes off a wheel.", "falls upwards."], "2"),
    (_BIKE, "v2", ["sells the road.", "freezes.", "is a wheel.", "oils the chain."], "3"),
    ("Two cooks stand here. One", "v3", ["stirs the soup.", "lands.", "rains.", "rusts."], "0"),
)
HELLASWAG = HubTask(
    name="hellaswag",
    repo="Rowan/hellaswag",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    test_split="validation",
    revision="refs/convert/parquet",
    prompt="{text}\nAnswer:",
)
