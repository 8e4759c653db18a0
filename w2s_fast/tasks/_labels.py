"""Class labels: one spelling for all file formats, a total order, and a warning for near-equals."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from w2s_fast.errors import DataWarning, W2SError

_SELECTORS = re.compile("[\ufe00-\ufe0f]")  # of a symbol's shape, as text or as emoji
_WHOLE = re.compile(r"([+-]?)(0|[1-9][0-9]*)(?:\.0*)?")  # no leading zero: "01" is a code


def canonical(value: Any, path: Path, row: int, ref: str) -> str:
    """Return the spelling of a label cell: 1, 1.0, "1" and "+1" are the class "1".

    Args:
        value: The cell; not missing.
        path: Its file, for messages.
        row: Its row from 0, for messages.
        ref: Its column, for messages.

    Raises:
        W2SError: It is a number with a fraction.
    """
    if isinstance(value, float | Decimal):
        if value % 1 != 0:
            raise W2SError(
                f"{path}: label {str(value)!r} in row {row + 1} of column {ref!r} (task.label) is "
                "not a class; expected strings or whole numbers"
            )
        return str(int(value))
    return canonical_name(str(value))


def canonical_name(name: str) -> str:
    """Return the spelling of a class that a user or a text file names."""
    name = name.strip()
    if match := _WHOLE.fullmatch(name):
        sign, digits = match.groups()
        return f"-{digits}" if sign == "-" and digits != "0" else digits
    return name


def canonical_truths(names: Sequence[str]) -> list[str]:
    """Return truth values as "True" and "False", if there are no other names.

    Text files have true and TRUE as well; beside other classes ("half-true"), names are left alone.
    """
    if {name.lower() for name in names} <= {"true", "false"}:
        return [name.capitalize() for name in names]
    return list(names)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in order, by number if all are integers; equal numbers in order of spelling."""
    distinct = set(names)
    try:
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(distinct))


def warn_of_near_equals(labels: Sequence[str], path: Path) -> None:
    """Warn of classes that differ only in case, format, as "1" and "01", or unseen characters."""
    alike: dict[str, list[str]] = {}
    counts = Counter(labels)
    for name in ordered(counts):
        alike.setdefault(_meaning(name), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            shown = " and ".join(f"{_shown(name)} ({counts[name]} rows)" for name in group)
            warnings.warn(
                f"{path}: the classes {shown} differ only in case or format, or in characters that "
                "are not seen; correct the rows if they are one class",
                DataWarning,
                stacklevel=2,
            )


def _meaning(name: str) -> str:
    seen = unicodedata.normalize("NFKC", "".join(filter(_is_seen, name)))
    text = " ".join(seen.split()).casefold()
    if len(text) > 15:  # more digits than a float distinguishes
        return text
    try:
        return f"number {float(text)}"
    except ValueError:
        return text


def _is_seen(character: str) -> bool:
    """Return whether a character is drawn, or is white space: joiners, marks of order are not."""
    return character.isspace() or not (
        unicodedata.category(character) in ("Cc", "Cf") or _SELECTORS.match(character)
    )


def _shown(name: str) -> str:
    """Return a name in quotes, with what cannot be seen as escapes."""
    return _SELECTORS.sub(lambda found: f"\\u{ord(found[0]):04x}", repr(name))
