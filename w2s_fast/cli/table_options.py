"""Options of commands that read tables: encoding, delimiter and quoting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from w2s_fast.errors import W2SError

if TYPE_CHECKING:
    from w2s_fast.comparison.table_format import TableFormat

FORMAT_OPTIONS = ("encoding", "delimiter", "quoted")
FORMAT_USAGE = """\
  --encoding NAME     encoding of the files, such as cp1252 (default: utf-8)
  --delimiter X       separator of columns, such as ';' (default: a comma for .csv, else a tab)
  --quoted BOOL       whether '"' encloses values (default: true for .csv, else false)
"""


def table_format(own: Mapping[str, str]) -> TableFormat:
    """Return the format that the options of a command name.

    Raises:
        W2SError: The encoding is unknown, or another value is none of its option.
    """
    from w2s_fast.comparison.table_format import TableFormat

    delimiter = own.get("delimiter")
    if delimiter == r"\t":  # a tab is awkward to type in a shell
        delimiter = "\t"
    return TableFormat(own.get("encoding", "utf-8"), delimiter, truth_option(own, "quoted"))


def truth_option(own: Mapping[str, str], name: str) -> bool | None:
    """Return the truth value of an option, None if it is not given."""
    if name not in own:
        return None
    if own[name] not in ("true", "false"):
        raise W2SError(f"--{name} is {own[name]!r}; expected true or false")
    return own[name] == "true"
