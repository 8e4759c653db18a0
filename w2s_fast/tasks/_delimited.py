"""Parse CSV and TSV text, with errors that name the likely delimiter and quoting."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from w2s_fast.errors import W2SError

_MAX_CELL = 1 << 28  # characters; Python's default of 131,072 is less than a book
_SAMPLE = 1 << 20  # characters from which another delimiter or quoting is guessed
_DELIMITERS = (",", "\t", ";", "|")


class Dialect(NamedTuple):
    """How values are separated, and whether '"' encloses them."""

    delimiter: str
    quoted: bool

    @property
    def options(self) -> str:
        """The settings of a task that choose this dialect."""
        return f"task.delimiter={self.delimiter!r}, task.quoted={str(self.quoted).lower()}"


class _Ragged(csv.Error):
    pass


def check_delimiter(delimiter: str | None) -> None:
    """Raise `W2SError` unless ``delimiter`` is None or one character that can separate values."""
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '\r\n"\0 '):
        raise W2SError(
            f"task.delimiter={delimiter!r}: expected one character, such as ',', ';', '|' or a tab "
            '("\\t" in YAML), and no line break, quote or space'
        )


def parse_delimited(text: str, dialect: Dialect, path: Path) -> list[list[str]]:
    """Return the rows of a text, all of the same number of values; blank lines are no rows.

    Args:
        text: The decoded file.
        dialect: Delimiter and quoting.
        path: The file, for messages.

    Raises:
        W2SError: Rows have different numbers of values, or quotes are not balanced.
    """
    try:
        rows = list(_rows(text, dialect))
    except csv.Error as error:
        raise W2SError(f"{path}: {error}; {_advice(text, dialect)}") from error
    if rows and len(rows[0]) == 1 and (other := _likely(text, dialect)):
        raise W2SError(
            f"{path} has one column with {dialect.options}; it looks like {other.options}, so set "
            "those"
        )
    return rows


def _rows(text: str, dialect: Dialect) -> Iterator[list[str]]:
    """Yield the rows.

    Raises:
        csv.Error: See ``parse_delimited``; the text names the line.
    """
    csv.field_size_limit(_MAX_CELL)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE,
        strict=True,
    )
    width, line = 0, 1
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                raise _Ragged(f"line {line} has {len(row)} values, the first has {width}")
            if row:
                yield row
            line = reader.line_num + 1
    except _Ragged:
        raise
    except csv.Error as error:
        reason = str(error)
        if "end of data" in reason:
            reason = "a '\"' opens a value and none closes it"
        elif "expected after" in reason:
            reason = f"{dialect.delimiter!r} is missing after a '\"' that closes a value"
        raise csv.Error(f"in the row from line {line} on, {reason}") from error


def _advice(text: str, dialect: Dialect) -> str:
    other = _likely(text, dialect)
    if other is not None:
        return f"it looks like {other.options}, so set those, or repair the row"
    if dialect.quoted:
        return (
            f"enclose values that contain {dialect.delimiter!r} in '\"' and double each '\"' in "
            "them, or set task.quoted=false or task.delimiter"
        )
    return (
        f"remove {dialect.delimiter!r} from the values, or set task.quoted=true or task.delimiter"
    )


def _likely(text: str, dialect: Dialect) -> Dialect | None:
    """Return the dialect in which all rows of a sample have the same number of values, above 1.

    The delimiter given is tried first, with the other quoting.
    """
    sample = text
    if len(text) > _SAMPLE:
        sample = text[: text.rfind("\n", 0, _SAMPLE) + 1] or text[:_SAMPLE]
    for delimiter in dict.fromkeys((dialect.delimiter, *_DELIMITERS)):
        for quoted in (dialect.quoted, not dialect.quoted):
            other = Dialect(delimiter, quoted)
            if other != dialect and _fits(sample, other):
                return other
    return None


def _fits(text: str, dialect: Dialect) -> bool:
    """Return whether a text has two rows or more, of the same number of values above 1."""
    try:
        rows = list(_rows(text, dialect))
    except csv.Error:
        return False
    return len(rows) > 1 and len(rows[0]) > 1
