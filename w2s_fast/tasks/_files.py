"""Read CSV, TSV, JSONL and Parquet into columns, with errors that name the file and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._delimited import Dialect, parse_delimited
from w2s_fast.tasks._encoding import decode_cell, decode_file
from w2s_fast.tasks._nesting import check_nesting
from w2s_fast.tasks._read_once import once

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
_PACKED = (".gz", ".bz2", ".zst")  # pyarrow decompresses these by their suffix
_MAX_BYTES = 4 << 30  # of a text file, decompressed; it is read whole
_MAX_ROW_BYTES = 1 << 28  # longest JSON line; pyarrow's default of 1 MB is less than a book


def file_format(path: Path) -> str:
    """Return the suffix of the format; that of ".csv.gz" is ".csv"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@once
def read_table(
    path: Path,
    header: bool = True,
    delimiter: str | None = None,
    quoted: bool | None = None,
    encoding: str = "utf-8",
) -> pyarrow.Table:
    """Read a whole file; CSV and TSV cells stay strings, columns without a header are "0", "1", ...

    Args:
        path: The file; its suffix gives the format.
        header: Whether a CSV or TSV file starts with column names.
        delimiter: Column separator; None: a comma for .csv, else a tab.
        quoted: Whether '"' encloses values; None: only in .csv.
        encoding: Text encoding of a file that is not Parquet.

    Raises:
        W2SError: The file is missing, empty, of another format or encoding, or damaged.
    """
    import pyarrow

    suffix = file_format(path)
    check_file(path)
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            table.validate(full=True)  # strings may hold anything
        elif suffix in (".jsonl", ".ndjson", ".json"):
            table = _read_json(decode_file(_read_bytes(path), encoding, path), path)
        else:
            csv = suffix == ".csv"
            dialect = Dialect(
                delimiter or ("," if csv else "\t"), csv if quoted is None else quoted
            )
            text = decode_file(_read_bytes(path), encoding, path)
            table = _as_table(parse_delimited(text, dialect, path), header)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise W2SError(
            f"{path} could not be read as {suffix}: {reason}; repair the file"
        ) from error
    if table.num_rows == 0:
        raise W2SError(f"{path} has no rows; expected one example per row")
    return table


def check_file(path: Path) -> None:
    """Raise `W2SError` unless ``path`` is a non-empty file of a supported format."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise W2SError(
            f"{path}: no such file{nearest(path.name, beside)}; give the path of a "
            ".csv, .tsv, .jsonl or .parquet file"
        ) from error
    except OSError as error:
        raise W2SError(f"{path}: {error.strerror}; give the path of a file you may read") from error
    if path.is_dir():
        raise W2SError(f"{path} is a directory; give the path of one file in it")
    if not path.is_file():
        raise W2SError(f"{path} is a pipe or a device; expected a file")
    if file_format(path) not in SUFFIXES:
        raise W2SError(
            f"{path}: unknown format {file_format(path)!r}; expected .csv, .tsv, .jsonl or .parquet"
        )
    if size == 0:
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


def text_cell(value: Any, where: str, encoding: str = "utf-8") -> Any:
    """Return a cell with bytes decoded, and numbers, strings and None unchanged.

    Args:
        value: The cell.
        where: File, row and column, for messages.
        encoding: Encoding of bytes.

    Raises:
        W2SError: It is a list, a dict, or bytes of another encoding.
    """
    if isinstance(value, list | tuple | dict):
        raise W2SError(
            f"{where} is a {type(value).__name__}; expected text or a number, so write each cell "
            "out as one string"
        )
    return decode_cell(value, encoding, where) if isinstance(value, bytes) else value


def _read_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed."""
    import pyarrow

    with pyarrow.input_stream(path) as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise W2SError(
            f"{path} has more than {_MAX_BYTES >> 30} GiB of text; split it, or convert it to "
            "Parquet"
        )
    return data


def _as_table(rows: list[list[str]], header: bool) -> pyarrow.Table:
    """Return rows of equal length as a table of strings; "01" stays "01", and "null" is a word."""
    import pyarrow

    names = rows[0] if header and rows else [str(i) for i in range(len(rows[0]) if rows else 0)]
    columns = list(zip(*rows[1 if header else 0 :], strict=True)) or [()] * len(names)
    arrays = [pyarrow.array(column, pyarrow.string()) for column in columns]
    return pyarrow.Table.from_arrays(arrays, names=names)


def _read_json(text: str, path: Path) -> pyarrow.Table:
    import pyarrow.json

    if text.lstrip().startswith("["):
        raise W2SError(
            f"{path} is a JSON array; expected one object per line, without the brackets"
        )
    data = text.encode()
    check_nesting(data, path)
    block = min(_MAX_ROW_BYTES, max(1 << 20, len(data)))
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=block)

    def read(schema: pyarrow.Schema | None) -> pyarrow.Table:
        parse = pyarrow.json.ParseOptions(explicit_schema=schema)
        return pyarrow.json.read_json(pyarrow.BufferReader(data), options, parse)

    table = read(None)
    # Strings that look like dates would be written out in another form.
    schema = pyarrow.schema([(f.name, _without_dates(f.type)) for f in table.schema])
    return table if schema.types == table.schema.types else read(schema)


def _without_dates(kind: pyarrow.DataType) -> pyarrow.DataType:
    """Return the type of a JSON column with texts for dates, in lists and objects too."""
    import pyarrow

    types = pyarrow.types
    if types.is_list(kind):
        return pyarrow.list_(_without_dates(kind.value_type))
    if types.is_struct(kind):
        parts = [kind.field(i) for i in range(kind.num_fields)]
        return pyarrow.struct([(part.name, _without_dates(part.type)) for part in parts])
    return pyarrow.string() if types.is_timestamp(kind) else kind


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Return a short list of column names; without a header they are the cells of the first row."""
    shown = [name if len(name) <= 30 else name[:27] + "..." for name in names[:most]]
    return ", ".join(map(repr, shown)) + (" ..." if len(names) > most else "")
