"""Fit names into limited space so that different names stay different.

Widths are terminal cells: 2 for an East Asian wide character or an emoji, 0 for a combining one.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Container, Iterator, Sequence

from rich.cells import cell_len

_BREAKS = re.compile(r"(?<=[+|,:/ ])|(?<=\.)(?=[a-zA-Z])")  # where a line of a name may end
_NUMBER = 8  # cells kept free for the number of a name that cannot be told from another


def printable(text: str, glyphs: Container[int] | None = None) -> str:
    r"""Replace characters that show nothing, or reorder others, by their escapes, such as ``\n``.

    A backslash is doubled, so that different texts stay different. The result has no line break and
    no lone surrogate, which XML and UTF-8 cannot hold.

    Args:
        text: The text.
        glyphs: Code points that can be drawn; others are replaced too. None: all can be drawn.
    """
    return "".join(c if _can_show(c, glyphs) else _escape(c) for c in text)


def _can_show(character: str, glyphs: Container[int] | None) -> bool:
    drawn = glyphs is None or ord(character) in glyphs
    return drawn and character.isprintable() and character != "\\"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()  # escapes what is not ASCII, and backslashes


def name_parts(text: str) -> list[str]:
    """Split a name where a line may end."""
    return _BREAKS.split(text)


def wrap_name(text: str, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` cells, after a separator where there is one."""
    lines = [""]
    for piece in name_parts(text):
        if cell_len(lines[-1] + piece) <= width:
            lines[-1] += piece
        else:
            lines += _chop(piece, width)
    return [line for line in lines if line]


def fit_names(
    names: Sequence[str], width: int, lines: int = 4, glyphs: Container[int] | None = None
) -> list[str]:
    """Wrap names, and shorten those that need more than ``lines`` lines; all stay different.

    Args:
        names: The names that are shown together.
        width: Most cells of a line; at least 16.
        lines: Most lines of a name.
        glyphs: As in ``printable``.

    Returns:
        For each name its text, with a line break between lines.
    """
    texts = [printable(name, glyphs) for name in names]
    long = [t for t in dict.fromkeys(texts) if len(wrap_name(t, width)) > lines]
    short: dict[str, str] = {}
    for cells in range(width * lines, width - 1, -1):  # breaks at separators leave cells empty
        short = _shorten(long, cells, set(texts) - set(long))
        if all(len(wrap_name(text, width)) <= lines for text in short.values()):
            break
    return ["\n".join(wrap_name(short.get(text, text), width)) for text in texts]


def _shorten(texts: Sequence[str], cells: int, taken: set[str]) -> dict[str, str]:
    """Return a text of at most ``cells`` cells for each text, none of them in ``taken``."""
    similar: dict[str, list[str]] = {}
    for text in texts:
        similar.setdefault(_keep_ends(text, cells), []).append(text)
    short: dict[str, str] = {}
    for group in similar.values():
        common = len(os.path.commonprefix(group)) if len(group) > 1 else None
        for text in group:
            short[text] = next(t for t in _candidates(text, common, cells) if t not in taken)
            taken.add(short[text])
    return short


def _candidates(text: str, common: int | None, cells: int) -> Iterator[str]:
    """Yield short forms of a text whose first ``common`` characters others have too."""
    yield _keep_ends(text, cells) if common is None else _keep_difference(text, common, cells)
    for i in itertools.count(2):
        yield f"{_keep_ends(text, cells - _NUMBER)} ({i})"


def _keep_ends(text: str, cells: int) -> str:
    if cell_len(text) <= cells:
        return text
    end = (cells - 1) // 2
    return f"{_start(text, cells - 1 - end)}…{_start(text[::-1], end)[::-1]}"


def _keep_difference(text: str, common: int, cells: int) -> str:
    """Return the start, and what follows the last separator before character ``common``."""
    breaks = [m.start() for m in _BREAKS.finditer(text) if common - 24 < m.start() <= common]
    first = _start(text, cells // 3)
    rest = text[max(breaks[-1] if breaks else common - 1, len(first)) :]
    return f"{first}…{_keep_ends(rest, cells - cell_len(first) - 1)}"


def _start(text: str, cells: int) -> str:
    """Return as much of the start of a text as fits."""
    return _chop(text, cells)[0]


def _chop(text: str, cells: int) -> list[str]:
    """Cut a text into pieces of at most ``cells`` cells, at any character."""
    pieces = [""]
    for character in text:
        if cell_len(pieces[-1] + character) > cells:
            pieces.append("")
        pieces[-1] += character
    return pieces
