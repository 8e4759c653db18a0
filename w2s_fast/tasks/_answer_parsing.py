"""Read the answer in a text; gold and generated texts are read in the same way.

Every reader returns "" if there is no answer, which never counts as a match.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CLASSES = ("wrong", "right")
PROMPT = "{text}"
_MARKER = "####"
# A minus after a digit or a bracket is a subtraction; commas count only between thousands.
_NUMBER = re.compile(r"(?<![\w.)])[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))")


def after(prompt: str, answer: str) -> str:
    """Return the answer as it follows its prompt, with a space between if neither has one."""
    separator = "" if prompt[-1:].isspace() or answer[:1].isspace() else " "
    return separator + answer.rstrip()


def whole_text(text: str) -> str:
    """Return the text without surrounding white space."""
    return text.strip()


def last_line(text: str) -> str:
    """Return the last line that is not blank."""
    return text.strip().rpartition("\n")[2].strip()


def final_number(text: str) -> str:
    """Return the number after "####", or else the last number, in canonical spelling.

    "1,000", "$1000", "1000." and "1000.0" are all "1000".
    """
    _, marker, rest = text.partition(_MARKER)
    match = _NUMBER.search(rest) if marker else None
    if match is None:
        numbers = list(_NUMBER.finditer(text))
        if not numbers:
            return ""
        match = numbers[-1]
    return _plain(match.group())


def _plain(number: str) -> str:
    digits = number.replace(",", "").replace("$", "").replace("+", "")
    minus, digits = digits.startswith("-"), digits.lstrip("-")
    whole, dot, rest = digits.partition(".")
    rest = rest.rstrip("0")
    plain = (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")
    return f"-{plain}" if minus and plain != "0" else plain


READERS: dict[str, Callable[[str], str]] = {
    "text": whole_text,
    "line": last_line,
    "number": final_number,
}
