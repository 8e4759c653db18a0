"""Read the answer in a text; gold and generated texts are read in the same way.

Every reader returns "" if there is no answer, which never counts as a match.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

CLASSES = ("wrong", "right")
PROMPT = "{text}"
_MARKER = "####"
# A minus after a digit or a bracket is a subtraction; commas count only between thousands.
_NUMBER = re.compile(
    r"(?<![\w.)])[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?"
)
# Typeset text has a minus sign or a hyphen of its own. Dashes are punctuation.
_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011\u2212\ufe63\uff0d", "-"))
_MOST_PLACES = 400  # any double has fewer; more would let "1e999999999" take a gigabyte


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

    "1,000", "$1000", "1000.", "1000.0" and "1e3" are all "1000". A number that is too large for
    a `Decimal` is no answer.
    """
    text = text.translate(_HYPHENS)
    _, marker, rest = text.partition(_MARKER)
    match = _NUMBER.search(rest) if marker else None
    if match is None:
        numbers = list(_NUMBER.finditer(text))
        if not numbers:
            return ""
        match = numbers[-1]
    return _plain(match.group())


def _plain(number: str) -> str:
    """Return the one spelling of a number: digits without an exponent, unless it is enormous."""
    digits = number.replace(",", "").replace("$", "")
    exact = Context(prec=len(digits), Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
    value = Decimal(digits, exact).normalize(exact)
    if not value.is_finite():
        return ""
    if not value:
        return "0"
    return f"{value:f}" if abs(value.adjusted()) <= _MOST_PLACES else str(value)


READERS: dict[str, Callable[[str], str]] = {
    "text": whole_text,
    "line": last_line,
    "number": final_number,
}
