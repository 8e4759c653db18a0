"""How the tables that a command reads are written, and errors that name the command's options.

Tables are read as those of tasks, whose messages name settings of a task.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from w2s_fast.errors import W2SError
from w2s_fast.tasks._delimited import check_delimiter
from w2s_fast.tasks._encoding import check_encoding
from w2s_fast.tasks._files import read_table

if TYPE_CHECKING:
    import pyarrow

# A setting of a task, but no part of the name of a file.
_SETTING = re.compile(
    r"(?<![\w./-])task\.(encoding|delimiter|quoted|header|text_pair|text|id)(?![\w.])"
)


@dataclass(frozen=True)
class TableFormat:
    """The form of CSV and TSV files.

    Attributes:
        encoding: Encoding of the file, or of binary Parquet columns.
        delimiter: Column separator; None: a comma for .csv and a tab for .tsv.
        quoted: Whether '"' encloses values; None: only in .csv.
    """

    encoding: str = "utf-8"
    delimiter: str | None = None
    quoted: bool | None = None

    def __post_init__(self) -> None:
        with option_names():
            check_encoding(self.encoding)
            check_delimiter(self.delimiter)

    def read(self, path: Path) -> pyarrow.Table:
        """Read a table whose first row has the names of its columns.

        Raises:
            W2SError: See ``read_table``.
        """
        return read_table(path, True, self.delimiter, self.quoted, self.encoding)


@contextlib.contextmanager
def option_names() -> Iterator[None]:
    """Let errors and warnings about a table name options, such as --text-pair of task.text_pair."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            yield
        except W2SError as err:
            raise W2SError(_with_options(str(err))) from err
    for warning in found:
        warnings.warn(_with_options(str(warning.message)), warning.category, stacklevel=3)


def _with_options(message: str) -> str:
    return _SETTING.sub(lambda match: f"--{match[1].replace('_', '-')}", message)


USUAL = TableFormat()
