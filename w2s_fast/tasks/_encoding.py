"""Decode data files and cells, with errors that name the likely encoding."""

from __future__ import annotations

import codecs
import encodings
import warnings
from pathlib import Path

from w2s_fast.errors import DataWarning, W2SError, nearest

_COMMON = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252")
# Of any two bytes of UTF-16 in a European language one is 0; a text file has hardly any.
_NUL_SHARE = 0.2
_SAMPLE = 1 << 14  # bytes or characters that decide whether a file is UTF-16


def check_encoding(name: str) -> None:
    """Raise `W2SError` unless ``name`` is a text encoding of Python."""
    expected = f"expected {', '.join(_COMMON)}, or another text encoding of Python"
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError) as error:  # ValueError: a NUL in the name
        known = {*_COMMON, *encodings.aliases.aliases}
        raise W2SError(
            f"task.encoding={name!r} is unknown; {expected}{nearest(name, known)}"
        ) from error
    if not codec._is_text_encoding:
        raise W2SError(f"task.encoding={name!r} does not decode text; {expected}")


def decode_file(data: bytes, encoding: str, path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        data: Content of the file.
        encoding: Its encoding, see ``check_encoding``.
        path: The file, for messages.

    Raises:
        W2SError: The bytes are not of this encoding.
    """
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
        text.encode()  # some codecs give halves of surrogate pairs
    except UnicodeError as error:
        raise W2SError(
            f"{path}: {_place(data, error)} is not {encoding}; {_advice(data, encoding)}"
        ) from error
    head = text[:_SAMPLE]
    no_nul = _code_unit(encoding) > 1 and 0 not in data  # but line breaks and commas have some
    if no_nul or head.count("\0") > _NUL_SHARE * len(head):
        raise W2SError(f"{path}: the bytes are no table in {encoding}; {_advice(data, encoding)}")
    if not text.isascii() and not _is_unicode(encoding) and _is_utf8(data):
        warnings.warn(
            f"{path} is read as {encoding} (task.encoding) but is valid UTF-8; if letters are "
            "wrong, set task.encoding=utf-8",
            DataWarning,
            stacklevel=2,
        )
    return text


def decode_cell(value: bytes, encoding: str, where: str) -> str:
    """Return a binary cell as text.

    Args:
        value: The cell.
        encoding: Its encoding, see ``check_encoding``.
        where: File, row and column, for messages.

    Raises:
        W2SError: The bytes are not of this encoding.
    """
    try:
        text = value.decode(encoding)
        text.encode()
    except UnicodeError as error:
        raise W2SError(f"{where} is not {encoding}; {_advice(value, encoding)}") from error
    return text


def likely_encoding(data: bytes) -> str | None:
    """Return the likeliest encoding, None if that is UTF-8 with damaged places.

    The one-byte encodings of Western Europe cannot be told from others of their kind.
    """
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = data[:_SAMPLE]
    if head.count(0) > _NUL_SHARE * len(head):
        return "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    if _is_utf8(data):
        return "utf-8"
    damaged = data.decode("utf-8", "replace")
    if sum(not c.isascii() for c in damaged) > 2 * damaged.count("\ufffd"):
        return None
    if any(0x80 <= byte < 0xA0 for byte in data):  # control characters in latin-1
        try:
            data.decode("cp1252")
        except UnicodeDecodeError:
            return "latin-1"
        return "cp1252"
    return "latin-1"


def _advice(data: bytes, encoding: str) -> str:
    likely = likely_encoding(data)
    if likely is None or codecs.lookup(likely) == codecs.lookup(encoding):
        return "repair the text, or set task.encoding to the encoding that it was saved in"
    return f"it looks like {likely}, so set task.encoding={likely}"


def _place(data: bytes, error: UnicodeError) -> str:
    if not isinstance(error, UnicodeDecodeError) or error.object != data:
        return "the text"
    line = data.count(b"\n", 0, error.start) + 1
    return f"byte {error.start} (0x{data[error.start]:02x}, line {line})"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_unicode(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith("utf")


def _code_unit(encoding: str) -> int:
    """Return the bytes that a character has at least."""
    name = codecs.lookup(encoding).name
    return 2 if name.startswith("utf-16") else 4 if name.startswith("utf-32") else 1
