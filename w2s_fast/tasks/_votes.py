"""Read the votes of weak supervisors from a column of a user's file, a list of classes per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._columns import is_missing, read_columns, written
from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._labels import canonical_name, canonical_truths

ABSTAIN = -1


def read_votes(paths: Sequence[Path], names: Sequence[str], cfg: TaskConfig) -> np.ndarray | None:
    """Return the votes (N, m) int16 in ``cfg.votes`` of all files, one after the other.

    A vote is a class in the spelling of the label column, or its position if no class is a number;
    -1 and null abstain.

    Args:
        paths: Files with the same columns.
        names: Class names in order.
        cfg: Format of the files, and the column.

    Returns:
        The votes; None if no column is configured.

    Raises:
        W2SError: A cell is no list of classes, or rows have different numbers of votes.
    """
    if cfg.votes is None:
        return None
    position = _positions(names)
    rows: list[list[int]] = []
    for path in paths:
        as_text = partial(_as_text, encoding=cfg.encoding)
        cells = read_columns(path, {"votes": cfg.votes}, cfg, unpack=as_text)["votes"]
        for i, cell in enumerate(cells):
            where = f"{path}: row {i + 1} of column {cfg.votes!r} (task.votes)"
            votes = [_vote(value, position, where) for value in _parse(cell, where)]
            if rows and len(votes) != len(rows[0]):
                raise W2SError(
                    f"{where} has {len(votes)} votes, the first row {len(rows[0])}; expected one "
                    "per supervisor in every row, -1 where it abstains"
                )
            rows.append(votes)
    return np.array(rows, dtype=np.int16)


def _positions(names: Sequence[str]) -> dict[str, int]:
    """Return class index by vote as text."""
    position = {name: i for i, name in enumerate(names)}
    if str(ABSTAIN) in position:
        raise W2SError(
            f"task.votes: -1 is one of the classes {list(names)} and also abstains; rename the "
            "class in the label column"
        )
    if not any(name.lstrip("+-").isdecimal() for name in names):
        position |= {str(i): i for i in range(len(names))}
    return position


def _as_text(cell: Any, encoding: str) -> Any:
    """Return a list as JSON, with its votes spelled as the label column spells such cells."""

    def spelled(value: Any) -> str:
        if isinstance(value, bytes):  # what is no text stays visible: no class has that name
            return value.decode(encoding, "backslashreplace")
        return written(value)

    return json.dumps(list(cell), default=spelled) if isinstance(cell, list | tuple) else cell


def _parse(cell: Any, where: str) -> list[Any]:
    """Return the votes in a cell: a JSON list, or values with commas or blanks between them."""
    text = "" if is_missing(cell) else str(cell).strip()
    try:
        values = json.loads(text) if text.startswith("[") else text.replace(",", " ").split()
    except (ValueError, RecursionError):
        values = []
    if not values or any(isinstance(v, list | dict) for v in values):
        raise W2SError(
            f"{where} is {str(cell)[:60]!r}; expected a list with the class that each supervisor "
            "votes for, such as [1, -1, 0]"
        )
    return values


def _vote(value: Any, position: dict[str, int], where: str) -> int:
    if value is None or is_missing(value):
        return ABSTAIN
    name = canonical_name(written(value))
    if name == str(ABSTAIN):
        return ABSTAIN
    for spelling in (name, *canonical_truths([name])):
        if spelling in position:
            return position[spelling]
    raise W2SError(
        f"{where} has the vote {value!r}; expected one of {list(position)}, or -1 to abstain"
        f"{nearest(name, list(position))}"
    )
