"""Check the texts of a task, wherever they come from: a file, the hub, or a class of the user."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_fast.errors import W2SError, is_unicode
from w2s_fast.tasks._base import TaskData

MAX_CLASS_NAME = 200  # characters; the name stands in tables, figures and prompts
MAX_TEXT = 1 << 28  # characters; a tokenizer takes all of a text before it is truncated


def check_texts(data: TaskData) -> None:
    """Check that all texts can be written to files and read by a tokenizer.

    Raises:
        W2SError: A value is no string, has half of a surrogate pair, or is too long; or a class
            name has a NUL.
    """
    _check(data.name, "class names", data.class_names, MAX_CLASS_NAME)
    if any("\0" in name for name in data.class_names):
        raise W2SError(
            f"task {data.name!r}: a class name has a NUL: {list(data.class_names)}; expected text, "
            "so check task.label"
        )
    for split, examples in data.splits.items():
        for column in ("ids", "texts", "pairs", "prompts", "answers", "groups", "subgroups"):
            _check(data.name, f"{column} of split {split}", getattr(examples, column) or ())


def _check(task: str, what: str, values: Sequence[str], limit: int = MAX_TEXT) -> None:
    for row, value in enumerate(values):
        where = f"task {task!r}: value {row + 1} of the {what}"
        if not isinstance(value, str):
            raise W2SError(f"{where} is a {type(value).__name__}; expected a string")
        if len(value) > limit:
            raise W2SError(
                f"{where} has {len(value)} characters ({value[:20]!r}...); expected at most "
                f"{limit}, so check which column it is"
            )
        if not (value.isascii() or is_unicode(value)):
            raise W2SError(
                f"{where} has half of a surrogate pair, which no file can hold: {value[:40]!r}; "
                "decode the text again, or remove it"
            )
