"""DREAM: is this the right answer to a question about a dialogue? (Sun et al. 2019).

Questions about one dialogue stay in one split. The hub stores the set with a loading script, which
is never run; the hub's own conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import as_list, show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Show the right answer or, with equal probability, one of the others."""
    answer, label = show_answer(row["answer"], as_list(row["choice"], "choice"), rng)
    dialogue = "\n".join(as_list(row["dialogue"], "dialogue"))
    return Item(f"{dialogue}\n\nQ: {row['question']} A: {answer}", label, dialogue)


_UMBRELLA = ["W: It will rain by four.", "M: Then I will take the umbrella, not the bike."]
_TICKET = ["M: Two for the late show.", "W: Only the front row is left.", "M: We'll take it."]
_COLUMNS = ("dialogue", "question", "choice", "answer")
_SAMPLES = (
    (_UMBRELLA, "What will the man take?", ["A bike.", "A coat.", "An umbrella."], "An umbrella."),
    (_UMBRELLA, "What is expected?", ["Rain.", "Snow.", "Fog."], "Rain."),
    (_TICKET, "Where will they sit?", ["At the back.", "In front.", "Outside."], "In front."),
    (_TICKET, "How many go?", ["One.", "Two.", "Three."], "Two."),
    (["W: Late?", "M: The bus was."], "How did he come?", ["By bus.", "On foot."], "By bus."),
)
DREAM = HubTask(
    name="dream",
    repo="dataset-org/dream",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    revision="refs/convert/parquet",
)
