"""Anthropic HH as preferences: which of two dialogues is the better one? (Bai et al. 2022).

Both dialogues of a pair are shown, unlike in `anthropic_hh`, which shows one alone as the original
code does. Pairs with the same opening stay in one split; pairs of equal dialogues are dropped. A
local copy may be one of the single-turn sets: any train.jsonl and test.jsonl with both columns.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._hub import HubTask, Item, Row
from w2s_fast.tasks._pairs import CLASSES, PROMPT, WORDS, opening, pair_up


def format_row(row: Row, rng: Random) -> Item | None:
    """Show both dialogues in random order."""
    return pair_up(row["chosen"], row["rejected"], opening(row["chosen"]), rng)


_SAMPLES = (
    ("Can I eat raw beans?", "Better not: boil them first.", "Yes, by the handful."),
    ("Help me word an apology.", "Say what you did and what you will change.", "Just say sorry."),
    ("How tall is a giraffe?", "About five metres.", "Taller than you."),
    ("My neighbour is loud.", "Ask him kindly, and say when it bothers you.", "Be louder."),
    ("Which way is north?", "At noon, shadows point there in Europe.", "Up."),
)
HH_RLHF = HubTask(
    name="hh_rlhf",
    repo="Anthropic/hh-rlhf",
    columns=("chosen", "rejected"),
    class_names=CLASSES,
    format=format_row,
    samples=tuple(
        {
            "chosen": f"\n\nHuman: {ask}\n\nAssistant: {good}",
            "rejected": f"\n\nHuman: {ask}\n\nAssistant: {bad}",
        }
        for ask, good, bad in _SAMPLES
    ),
    kind="preference",
    prompt=PROMPT,
    words=WORDS,
)
