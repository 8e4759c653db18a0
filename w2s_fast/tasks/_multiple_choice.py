"""Multiple choice with one answer shown: the right one, or as often a wrong one.

Sets that share this shape ask whether the shown answer is the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from w2s_fast.errors import W2SError


def show(right: str, others: Sequence[str], rng: Random) -> tuple[str, int]:
    """Return the answer to show and its class: 1 where it is the right one.

    An answer that reads like the right one is never shown as a wrong one; without any other
    answer the right one is shown.
    """
    wrong = [answer for answer in others if answer != right]
    label = int(rng.random() < 0.5)
    if label or not wrong:
        return right, 1
    return rng.choice(wrong), 0


def listed(value: Any, column: str) -> list[str]:
    """Return a cell that holds a list.

    Raises:
        W2SError: It does not, as in a CSV file.
    """
    if not isinstance(value, list):
        raise W2SError(
            f"{column} is a {type(value).__name__}, expected a list; CSV cells hold none, so use "
            ".parquet or .jsonl"
        )
    return [str(item) for item in value]


def lettered(value: Any, column: str) -> dict[str, str]:
    """Return a cell of answers with their letters: {"text": [...], "label": [...]}.

    Returns:
        Letter -> answer, in the order of the cell.

    Raises:
        W2SError: The cell is of another form.
    """
    if not isinstance(value, dict) or not {"text", "label"} <= set(value):
        raise W2SError(f"{column} is {value!r}; expected {{'text': [...], 'label': [...]}}")
    letters, answers = (listed(value[key], f"{column}.{key}") for key in ("label", "text"))
    return dict(zip(letters, answers, strict=True))


def picked(answers: Sequence[str] | dict[str, str], key: Any, column: str) -> str:
    """Return the right answer by its position or letter.

    Raises:
        W2SError: There is none: the split has no labels.
    """
    by_key = answers if isinstance(answers, dict) else {str(i): a for i, a in enumerate(answers)}
    found = by_key.get(str(key).strip())
    if found is None:
        raise W2SError(
            f"{column} is {key!r}; expected one of {', '.join(by_key)}: use a labelled split of "
            "this set"
        )
    return found
