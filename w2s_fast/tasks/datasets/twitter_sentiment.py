"""Twitter sentiment: is this message positive? (Go, Bhayani & Huang 2009, as EleutherAI cut it)."""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row, class_index


def format_row(row: Row, rng: Random) -> Item:
    """Show the message; ``rng`` is not used."""
    return Item(row["text"], class_index(row["label"], "label", 2), row["text"])


_SAMPLES = (
    (1, "first tomatoes from the balcony!! so proud"),
    (0, "missed the bus again, and it rains"),
    (1, "@sam thanks for the soup, you saved my week"),
    (0, "why is my phone always at 3 percent"),
    (1, "new bike day"),
)
TWITTER_SENTIMENT = HubTask(
    name="twitter_sentiment",
    repo="EleutherAI/twitter-sentiment",
    columns=("text", "label"),
    class_names=("negative", "positive"),
    format=format_row,
    samples=tuple({"label": y, "text": t} for y, t in _SAMPLES),
    prompt="Message: {text}\nSentiment:",
    words=(" negative", " positive"),
)
