"""Read CSV, TSV, JSONL and Parquet into columns, with errors that name the file and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.errors import W2SError, nearest

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
_PACKED = (".gz", ".bz2", ".zst")  # pyarrow decompresses these by their suffix
_MAX_ROW_BYTES = 1 << 28  # longest JSON line; pyarrow's default of 1 MB is less than a book


def file_format(path: Path) -> str:
    """Return the suffix of the format; that of ".csv.gz" is ".csv"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_table(
    path: Path, header: bool = True, delimiter: str | None = None, quoted: bool | None = None
) -> pyarrow.Table:
    """Read a whole file; CSV and TSV cells stay strings, columns without a header are "0", "1", ...

    Args:
        path: The file; its suffix gives the format.
        header: Whether a CSV or TSV file starts with column names.
        delimiter: Column separator; None: a comma for .csv, else a tab.
        quoted: Whether '"' encloses values; None: only in .csv.

    Raises:
        W2SError: The file is missing, empty, of another format, or damaged.
    """
    import pyarrow

    suffix = file_format(path)
    check_file(path)
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
        elif suffix in (".jsonl", ".ndjson", ".json"):
            table = _read_json(path)
        else:
            csv = suffix == ".csv"
            table = _read_csv(
                path, header, delimiter or ("," if csv else "\t"), csv if quoted is None else quoted
            )
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise W2SError(
            f"{path} could not be read as {suffix}: {reason}; repair the file"
            + ("" if suffix == ".parquet" else " (UTF-8, one row per line)")
        ) from error
    if table.num_rows == 0:
        raise W2SError(f"{path} has no rows; expected one example per row")
    return table


def check_file(path: Path) -> None:
    """Raise `W2SError` unless ``path`` is a non-empty file of a supported format."""
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise W2SError(
            f"{path}: no such file{nearest(path.name, beside)}; give the path of a "
            ".csv, .tsv, .jsonl or .parquet file"
        )
    if path.is_dir():
        raise W2SError(f"{path} is a directory; give the path of one file in it")
    if file_format(path) not in SUFFIXES:
        raise W2SError(
            f"{path}: unknown format {file_format(path)!r}; expected .csv, .tsv, .jsonl or .parquet"
        )
    if path.stat().st_size == 0:
        raise W2SError(f"{path} is empty; expected one example per row")


def column(table: pyarrow.Table, ref: str, option: str, path: Path) -> list[Any]:
    """Return a column by name, or else by position from 0.

    Args:
        table: The table.
        ref: Name or position.
        option: Configuration key of ``ref``, for messages.
        path: File of the table, for messages.

    Raises:
        W2SError: There is no such column, or several have the name.
    """
    names = table.column_names
    if names.count(ref) > 1:
        raise W2SError(
            f"{path}: {names.count(ref)} columns are named {ref!r}; rename them or set {option} to "
            "a position"
        )
    if ref in names:
        return table.column(ref).to_pylist()
    if ref.isdecimal() and int(ref) < len(names):
        return table.column(int(ref)).to_pylist()
    raise W2SError(
        f"{path}: no column {ref!r} ({option}){nearest(ref, names)}; the columns are "
        f"{_listed(names)}; set {option} to one of them, or to a position (0, 1, ...) if the file "
        "has no header"
    )


def text_cell(value: Any, where: str) -> Any:
    """Return a cell with bytes decoded as UTF-8, and numbers, strings and None unchanged.

    Args:
        value: The cell.
        where: File, row and column, for messages.

    Raises:
        W2SError: It is a list, a dict, or bytes that are no UTF-8.
    """
    if isinstance(value, list | tuple | dict):
        raise W2SError(
            f"{where} is a {type(value).__name__}; expected text or a number, so write each cell "
            "out as one string"
        )
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise W2SError(
            f"{where} is no UTF-8 ({error.reason} at byte {error.start}); expected text, so "
            "convert the column"
        ) from error


def _read_csv(path: Path, header: bool, delimiter: str, quoted: bool) -> pyarrow.Table:
    import pyarrow
    import pyarrow.csv

    if len(delimiter) != 1:
        raise W2SError(f"task.delimiter={delimiter!r}: expected one character")
    # With more threads, messages lack the number of the row.
    read = pyarrow.csv.ReadOptions(use_threads=False, autogenerate_column_names=not header)
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    with pyarrow.csv.open_csv(path, read_options=read, parse_options=parse) as stream:
        names = stream.schema.names
    # All cells are strings: "01" must stay "01", and "null" is a word, not a missing value.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()))
    table = pyarrow.csv.read_csv(
        path, read_options=read, parse_options=parse, convert_options=convert
    )
    return table if header else table.rename_columns([str(i) for i in range(len(names))])


def _read_json(path: Path) -> pyarrow.Table:
    import pyarrow.json

    block = min(_MAX_ROW_BYTES, max(1 << 20, path.stat().st_size))
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=block)
    return pyarrow.json.read_json(path, read_options=options)


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Return a short list of column names; without a header they are the cells of the first row."""
    shown = [name if len(name) <= 30 else name[:27] + "..." for name in names[:most]]
    return ", ".join(map(repr, shown)) + (" ..." if len(names) > most else "")
