"""Amazon polarity: is a product review positive? (Zhang, Zhao & LeCun 2015)."""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show title and review; ``rng`` is not used."""
    text = f"{row['title']} {row['content']}"
    return Item(text, class_index(row["label"], "label", 2), text)


_SAMPLES = (
    (1, "Sturdy little lamp", "Bright, quiet and easy to put up. I ordered a second one."),
    (0, "Broke in a week", "The handle came off and nobody answered my letters."),
    (1, "Could not stop reading", "The best story about lighthouses that I know."),
    (0, "Too small", "The sizes on the page are wrong, so it went straight back."),
    (1, "Does what it says", "Three winters now and still warm."),
)
AMAZON_POLARITY = HubTask(
    name="amazon_polarity",
    repo="fancyzhx/amazon_polarity",
    columns=("label", "title", "content"),
    class_names=("negative", "positive"),
    format=format_row,
    samples=tuple({"label": y, "title": t, "content": c} for y, t, c in _SAMPLES),
    prompt="Review: {text}\nSentiment:",
    words=(" negative", " positive"),
)
