"""A locale whose encoding is ASCII, as that of many containers and of cron."""

from __future__ import annotations

import contextlib
import locale
from collections.abc import Iterator


@contextlib.contextmanager
def ascii_locale() -> Iterator[None]:
    """Open text as in ``LC_ALL=C``, unless Python runs in its UTF-8 mode."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
