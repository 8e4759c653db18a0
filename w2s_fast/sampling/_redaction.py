"""Texts without the key, however a server spells it when it repeats a request."""

from __future__ import annotations

import re
from functools import lru_cache
from html.entities import html5

LONGEST_SPELLING = 32  # characters that stand for one of the key
_ESCAPES = 7  # backslashes before a character of JSON that was put into JSON twice


def redact(text: str, key: str) -> str:
    """Return a text with ``***`` in the place of the key.

    The key is found as it is, and with any of its characters as an escape of JSON (``\\/``,
    ``\\u002b``), of an address (``%2B``) or of HTML (``&#43;``), which may be escaped again.
    """
    return _spellings(key).sub("***", text) if key else text


def excerpt(text: str | bytes, key: str, length: int = 200) -> str:
    """Return the start of a text as one line without the key, nor a part of one that is cut."""
    last = LONGEST_SPELLING * len(key)
    whole = len(text) <= 20 * length + last
    start = text[: 20 * length + last]
    shown = redact(start.decode(errors="replace") if isinstance(start, bytes) else start, key)
    return " ".join((shown if whole else shown[: -last or None]).split())[:length]


@lru_cache(16)
def _spellings(key: str) -> re.Pattern[str]:
    # Backslashes before its first character may stay: without them, a search is much faster.
    first, *others = (_spelling(character) for character in key)
    return re.compile("".join([f"(?:{first})", *(f"\\\\{{0,{_ESCAPES}}}(?:{c})" for c in others)]))


def _spelling(character: str) -> str:
    """Return a pattern of a character, and of its escapes."""
    code = ord(character)
    digits = _any_case(f"{code:02x}")
    names = [name for name, text in html5.items() if text == character and name.endswith(";")]
    entity = "|".join([f"#0{{0,5}}{code};", f"#[xX]0{{0,5}}{digits};", *map(re.escape, names)])
    json_escape = rf"\\{{1,{_ESCAPES}}}(?:[uU]00|[xX]){digits}"
    return "|".join(
        [
            re.escape(character),
            json_escape,
            rf"%(?:25){{0,3}}{digits}",
            f"&(?:amp;){{0,3}}(?:{entity})",
        ]
    )


def _any_case(text: str) -> str:
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in text)
