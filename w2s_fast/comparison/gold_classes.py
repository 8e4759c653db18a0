"""The class that a cell of ``gold`` names, in the spellings of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from w2s_fast.tasks._labels import canonical_name

_TRUTHS = ("false", "true")


class GoldClasses:
    """Find the number of a class.

    A cell has the name of a class, or its number from 0 if no name is a number. Tables write 1 as
    "1.0" or "+1" too, and truth values in any case; False and True are the classes 0 and 1 where
    these have no other names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._number = {name: i for i, name in enumerate(classes)}
        for i, name in enumerate(classes):
            self._number.setdefault(canonical_name(name), i)
        if not any(map(_is_number, classes)):
            self._number |= {str(i): i for i in range(len(classes))}
        lower = tuple(name.lower() for name in classes)
        if tuple(sorted(lower)) == _TRUTHS:
            self._truths = {name: i for i, name in enumerate(lower)}
        else:
            numbered = tuple(classes) == ("0", "1")
            self._truths = {name: i for i, name in enumerate(_TRUTHS)} if numbered else {}

    def find(self, cell: Any) -> int | None:
        """Return the number of the class that a cell names, None if it names none."""
        text = str(cell)
        for spelling in (text, canonical_name(text), _whole(text)):
            if spelling in self._number:
                return self._number[spelling]
        return self._truths.get(text.strip().lower())


def _whole(text: str) -> str:
    """Return a whole number without fraction and exponent: "1e0" is "1"."""
    if not _is_number(text) or not float(text).is_integer():
        return text
    return str(int(float(text)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
