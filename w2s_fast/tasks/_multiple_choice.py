"""Multiple-choice questions as binary ones: show one answer and ask whether it is right."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from w2s_fast.errors import W2SError


def show_answer(right: str, others: Sequence[str], rng: Random) -> tuple[str, int]:
    """Return the answer to show and its class: 1 if it is the right one, with probability 1/2.

    An answer equal to the right one is never shown as wrong; without any other answer, the right
    one is shown.
    """
    wrong = [answer for answer in others if answer != right]
    label = int(rng.random() < 0.5)
    if label or not wrong:
        return right, 1
    return rng.choice(wrong), 0


def as_list(value: Any, column: str) -> list[str]:
    """Return a cell as a list of strings.

    Raises:
        W2SError: The cell is not a list, as in a CSV file.
    """
    if not isinstance(value, list):
        raise W2SError(
            f"{column} is a {type(value).__name__}, expected a list; CSV has no lists, so use "
            ".parquet or .jsonl"
        )
    return [str(item) for item in value]


def choices_by_letter(value: Any, column: str) -> dict[str, str]:
    """Return a cell {"text": [...], "label": [...]} as answers by letter.

    Returns:
        Letter -> answer, in the order of the cell.

    Raises:
        W2SError: The cell has another form.
    """
    if not isinstance(value, dict) or not {"text", "label"} <= set(value):
        raise W2SError(f"{column} is {value!r}; expected {{'text': [...], 'label': [...]}}")
    letters, answers = (as_list(value[key], f"{column}.{key}") for key in ("label", "text"))
    return dict(zip(letters, answers, strict=True))


def right_answer(answers: Sequence[str] | dict[str, str], key: Any, column: str) -> str:
    """Return the right answer by its position or letter.

    Raises:
        W2SError: There is none, as in a split without labels.
    """
    by_key = answers if isinstance(answers, dict) else {str(i): a for i, a in enumerate(answers)}
    answer = by_key.get(str(key).strip())
    if answer is None:
        raise W2SError(
            f"{column} is {key!r}; expected one of {', '.join(by_key)}: use a labelled split of "
            "this set"
        )
    return answer
