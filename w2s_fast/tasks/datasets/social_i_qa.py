"""Social IQa: is this the right answer to a question about people? (Sap et al. 2019).

Questions about one situation stay in one split. The test rows are the validation split, the only
other one on the hub. The hub stores the set with a loading script, which is never run; the hub's
own conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._multiple_choice import right_answer, show_answer


def format_row(row: Row, rng: Random) -> Item:
    """Show all choices and ask about the right one or, with equal probability, another one."""
    choices = {str(i + 1): row[f"answer{letter}"] for i, letter in enumerate("ABC")}
    right = right_answer(choices, row["label"], "label")
    answer, label = show_answer(right, list(choices.values()), rng)
    options = "\n".join(choices.values())
    text = (
        f'Context:\n{row["context"]}\n\nQuestion: "{row["question"]}"\n\nChoices:\n{options}\n\n'
        f'Is the answer "{answer}"?'
    )
    return Item(text, label, row["context"])


_MOVE = "Noor carried her neighbour's boxes all morning."
_PRIZE = "Jan won the prize that Eva had hoped for."
_COLUMNS = ("context", "question", "answerA", "answerB", "answerC", "label")
_SAMPLES = (
    (_MOVE, "How does the neighbour feel?", "thankful", "robbed", "hungry", "1"),
    (_MOVE, "What is Noor like?", "lazy", "helpful", "rude", "2"),
    (_PRIZE, "How does Eva feel?", "sleepy", "proud of herself", "disappointed", "3"),
    (_PRIZE, "What will Jan do next?", "give thanks", "give up", "move away", "1"),
    ("Li forgot the tickets at home.", "What will Li do?", "sing", "turn back", "eat", "2"),
)
SOCIAL_I_QA = HubTask(
    name="social_i_qa",
    repo="allenai/social_i_qa",
    columns=_COLUMNS,
    class_names=("wrong", "correct"),
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    test_split="validation",
    revision="refs/convert/parquet",
    prompt="{text}\nAnswer:",
)
