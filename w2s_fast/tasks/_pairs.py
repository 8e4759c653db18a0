"""Two answers to one prompt, in random order: which one is preferred?

Both are shown, so the question has an answer whatever each of them is like alone. The gold class
is 1 where the second one is preferred; the order is a coin of the row's own, so classes are
balanced by construction.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._examples import Item

CLASSES = ("first", "second")
PROMPT = "First:\n{text}\n\nSecond:\n{pair}\n\nThe better one is the"
WORDS = (" first", " second")
_REPLY = "\n\nAssistant:"


def pair_up(chosen: str, rejected: str, group: str | None, rng: Random) -> Item | None:
    """Return both dialogues in random order; None where they are equal and decide nothing."""
    if chosen == rejected:
        return None
    second = int(rng.random() < 0.5)
    one, two = (rejected, chosen) if second else (chosen, rejected)
    return Item(one, second, group, pair=two)


def opening(dialogue: str) -> str:
    """Return a dialogue up to its first reply, in the format of Anthropic's sets."""
    return dialogue.split(_REPLY)[0]


def shared_opening(one: str, two: str) -> str | None:
    """Return the opening that two dialogues share, None if they are not in that format."""
    first = opening(one)
    return first if _REPLY in one and first == opening(two) else None


def joined(prompt: str, answer: str) -> str:
    """Return prompt and answer as one text.

    A line break is put between them where neither brings white space, and an answer that already
    starts with its prompt stays as it is.
    """
    if answer.startswith(prompt):
        return answer
    seam = "" if prompt[-1:].isspace() or answer[:1].isspace() else "\n"
    return f"{prompt}{seam}{answer}"
