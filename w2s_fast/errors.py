"""The one exception users meet, and the hint that names what they probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class W2SError(ValueError):
    """Bad input. The message is one line: the value, what was expected, and the fix."""


class W2SKeywordError(W2SError, TypeError):
    """A call with a keyword that the function does not have; Python's own error is a TypeError."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``names``, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
