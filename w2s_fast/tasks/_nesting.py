"""Refuse JSON that is nested too deeply: pyarrow recurses once per level, until the process dies.

Only the shape of the text is looked at, its quotes, brackets and line ends. That is a few passes of
`bytes` methods, much less work than the parser has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from w2s_fast.errors import W2SError

MOST_LEVELS = 100  # people write ten; pyarrow ends the process at some ten thousand
_CHUNK = 1 << 24  # bytes whose shape is in memory at a time
_NO_SHAPE = bytes(set(range(256)) - set(b'"[]{}\n'))
_TEXT = re.compile(rb'"[^"\n]*"')
_STEP = np.zeros(256, dtype=np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1


def check_nesting(data: bytes, path: Path) -> None:
    """Raise `W2SError` if lists and objects in lines of JSON are more than 100 levels deep.

    Args:
        data: The lines, in UTF-8.
        path: Their file, for messages.
    """
    level, line = 0, 1
    for chunk in _chunks(data):
        shape = np.frombuffer(_shape(chunk), dtype=np.uint8)
        levels = level + np.cumsum(_STEP[shape], dtype=np.int64)
        breaks = shape == ord("\n")
        if len(levels) and levels.max() > MOST_LEVELS:
            line += int(breaks[: int(np.argmax(levels > MOST_LEVELS))].sum())
            raise W2SError(
                f"{path}: line {line} has lists or objects nested more than {MOST_LEVELS} levels "
                "deep; flatten them, or remove the column"
            )
        level, line = int(levels[-1]) if len(levels) else level, line + int(breaks.sum())


def _chunks(data: bytes) -> Iterator[bytes]:
    """Cut at ends of lines, where no text is open: JSON has none of more than a line."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + _CHUNK) + 1 or len(data)
        yield data[start:end]
        start = end


def _shape(chunk: bytes) -> bytes:
    """Return the brackets outside of texts, and the line ends."""
    if b"\\" in chunk:
        chunk = chunk.replace(b"\\\\", b"").replace(b'\\"', b"")
    shape = chunk.translate(None, _NO_SHAPE)
    # Two quotes with nothing between them leave everything as it was, within a text or outside.
    return _TEXT.sub(b"", shape.replace(b'""', b""))
