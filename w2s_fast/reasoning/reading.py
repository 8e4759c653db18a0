"""Read the final answer of a worked solution; "" if it has none.

These readers do not guess. The reader "number" of `w2s_fast.tasks` falls back to the last number of
a text, which suits the score of a prediction; in a selection it would let two unfinished solutions
agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from w2s_fast.errors import W2SError, nearest
from w2s_fast.tasks._answer_parsing import READERS

_MARKER = "####"
_SENTENCE = re.compile(r"[Tt]he answer is:?[ \t]*(.*)")
Reader = Callable[[str], str]


def marked_answer(text: str) -> str:
    """Return what follows the first "####" on its line, as in GSM8K."""
    return text.partition(_MARKER)[2].strip().partition("\n")[0].strip()


def stated_answer(text: str) -> str:
    """Return what follows the last "The answer is:" on its line, without a full stop."""
    found = _SENTENCE.findall(text)
    return found[-1].strip().rstrip(".").strip() if found else ""


READERS_BY_NAME: dict[str, Reader] = {
    "marked": marked_answer,
    "stated": stated_answer,
    **READERS,
}


def get_reader(read: str | Reader) -> Reader:
    """Return a reader by name, or the function itself.

    Raises:
        W2SError: There is no reader of that name.
    """
    if callable(read):
        return read
    if read not in READERS_BY_NAME:
        raise W2SError(
            f"read is {read!r}; expected a function or one of {', '.join(READERS_BY_NAME)}"
            f"{nearest(str(read), READERS_BY_NAME)}"
        )
    return READERS_BY_NAME[read]
