"""BoolQ: does the passage answer the question with yes? (Clark et al. 2019).

About 62 % of the answers are yes. The original code keeps this share, so a constant guess scores
.62; here the splits are balanced unless ``task.balance`` is false. Questions about one passage stay
in one split. The test rows are the validation split, the only other one with answers.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show passage and question; ``rng`` is not used."""
    text = f"Passage: {row['passage']}\nQuestion: {row['question']}"
    return Item(text, class_index(row["answer"], "answer", 2), row["passage"])


_BRIDGE = "The old bridge has two arches. It was closed to cars in 1990 and is open to walkers."
_OTTER = "Otters hunt in water and sleep on land. They eat fish, crabs and frogs."
_SAMPLES = (
    (_BRIDGE, "can you walk over the old bridge", True),
    (_BRIDGE, "are cars allowed on the old bridge", False),
    (_OTTER, "do otters eat frogs", True),
    (_OTTER, "do otters sleep in water", False),
    ("The museum opens at nine and closes at five.", "is the museum open at noon", True),
)
BOOLQ = HubTask(
    name="boolq",
    repo="google/boolq",
    columns=("passage", "question", "answer"),
    class_names=("no", "yes"),
    format=format_row,
    samples=tuple({"passage": p, "question": q, "answer": a} for p, q, a in _SAMPLES),
    test_split="validation",
    prompt="{text}\nAnswer:",
)
