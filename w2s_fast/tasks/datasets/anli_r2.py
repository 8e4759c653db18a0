"""ANLI, second round: does the premise entail the hypothesis? (Nie et al. 2020).

Neutral and contradicted hypotheses form one class, as in EleutherAI/w2s. Hypotheses about one
premise stay in one split.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show premise and hypothesis; ``rng`` is not used."""
    text = (
        f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}\n\nDoes the premise entail "
        "the hypothesis?"
    )
    entailed = class_index(row["label"], "label", 3) == 0
    return Item(text, int(entailed), row["premise"])


_MILL = "The mill at Orrin was built in 1804. It burned down twice and is a museum today."
_BAND = "The band has four members. Two of them are sisters who grew up in Malta."
_SAMPLES = (
    (_MILL, "There was a fire at the mill.", 0),
    (_MILL, "The mill grinds flour today.", 2),
    (_BAND, "The sisters sing.", 1),
    (_BAND, "The band has more than three members.", 0),
    ("Lena won the race in heavy rain.", "The race was on a dry day.", 2),
)
ANLI_R2 = HubTask(
    name="anli_r2",
    repo="facebook/anli",
    columns=("premise", "hypothesis", "label"),
    class_names=("not entailed", "entailed"),
    format=format_row,
    samples=tuple({"premise": p, "hypothesis": h, "label": y} for p, h, y in _SAMPLES),
    train_split="train_r2",
    test_split="test_r2",
    prompt="{text}\nAnswer:",
)
