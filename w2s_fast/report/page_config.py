"""Settings of the report page."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.errors import W2SError

MOST_ITEMS, MOST_CHARS = 20_000, 4000


@dataclass(frozen=True)
class PageConfig:
    """What report.html and items.json show of the test items; results do not depend on it.

    Attributes:
        items: Test items of the first seed, the first ones of the split; 0: none.
        texts: Whether they have their texts; false for texts that are private or harmful.
        text_chars: Characters of a text that are shown.
    """

    items: int = 2000
    texts: bool = True
    text_chars: int = 400

    def __post_init__(self) -> None:
        if not 0 <= self.items <= MOST_ITEMS:
            raise W2SError(
                f"page.items={self.items}: expected 0 (none) to {MOST_ITEMS}, which a browser "
                "can search at once"
            )
        if not 1 <= self.text_chars <= MOST_CHARS:
            raise W2SError(
                f"page.text_chars={self.text_chars}: expected 1 to {MOST_CHARS}; page.texts=false "
                "leaves texts out"
            )
