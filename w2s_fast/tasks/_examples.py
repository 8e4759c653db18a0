"""Rows with their gold, as formatters and readers make them, and their way into three splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._split import make_examples, split_pool


class Item(NamedTuple):
    """What is made of one row.

    Attributes:
        text: The text.
        label: Gold class; 0 where the gold is an answer.
        group: What related rows share, None where there are none.
        pair: The second text of a preference.
        answer: The gold answer in words.
    """

    text: str
    label: int
    group: str | None
    pair: str | None = None
    answer: str | None = None


def as_examples(items: Sequence[Item]) -> Examples:
    """Return the columns of items that all have a second text or none, and an answer or none."""
    seconds = [item.pair for item in items if item.pair is not None]
    answers = [item.answer for item in items if item.answer is not None]
    return make_examples(
        [item.text for item in items],
        [item.label for item in items],
        seconds or None,
        [item.group for item in items],
        answers or None,
    )


def split_items(
    parts: Sequence[Sequence[Item]],
    sources: Sequence[str],
    class_names: Sequence[str],
    cfg: TaskConfig,
    seed: int,
) -> TaskData:
    """Return the splits of one set of items, or of one and a second one with the test rows.

    Args:
        parts: One or two sets; relations between them are seen.
        sources: What error messages call each.
        class_names: Name of each class.
        cfg: Sizes, and whether to balance.
        seed: Seed of the draw.

    Raises:
        W2SError: There are too few rows, or rows of one class only.
    """
    pool, tests = as_examples([item for part in parts for item in part]).cut(len(parts[0]))
    test_pool = tests if len(parts) > 1 else None
    return split_pool(pool, test_pool, class_names, cfg, seed, sources[0], sources[-1])
