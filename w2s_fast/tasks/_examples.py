"""Labelled rows, as formatters and readers return them, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._split import make_examples, split_pool


class Item(NamedTuple):
    """One labelled row.

    Attributes:
        text: The text.
        label: Gold class; 0 for generation tasks.
        group: Name that related rows share; None if there are none.
        pair: Second text of a preference.
        answer: Gold answer of a generation task.
        prompt: Text with which both texts of a preference begin; None if it is not known.
    """

    text: str
    label: int
    group: str | None
    pair: str | None = None
    answer: str | None = None
    prompt: str | None = None


def as_examples(items: Sequence[Item]) -> Examples:
    """Return the columns of items; either all or none have a second text, likewise an answer."""
    seconds = [item.pair for item in items if item.pair is not None]
    answers = [item.answer for item in items if item.answer is not None]
    return make_examples(
        [item.text for item in items],
        [item.label for item in items],
        seconds or None,
        [item.group for item in items],
        answers or None,
        prompts=[item.prompt for item in items if item.prompt is not None] or None,
    )


def split_items(
    parts: Sequence[Sequence[Item]],
    sources: Sequence[str],
    class_names: Sequence[str],
    cfg: TaskConfig,
    seed: int,
) -> TaskData:
    """Return the splits of one list of items, or of two, the second with the test rows.

    Args:
        parts: One or two lists; related rows are found across them.
        sources: Name of each in error messages.
        class_names: Name of each class.
        cfg: Sizes, and whether to balance.
        seed: Seed of the draw.

    Raises:
        W2SError: There are too few rows, or rows of one class only.
    """
    pool, tests = as_examples([item for part in parts for item in part]).cut(len(parts[0]))
    test_pool = tests if len(parts) > 1 else None
    return split_pool(pool, test_pool, class_names, cfg, seed, sources[0], sources[-1])
