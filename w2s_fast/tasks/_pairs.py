"""Preference pairs: two answers to one prompt, in random order.

Both are shown. The gold class is 1 if the second is preferred; the order is drawn per row, so
classes are balanced in expectation.
"""

from __future__ import annotations

import os
import re
from random import Random

from w2s_fast.tasks._examples import Item
from w2s_fast.tasks._split import squeeze

CLASSES = ("first", "second")
PROMPT = "First:\n{text}\n\nSecond:\n{pair}\n\nThe better one is the"
WORDS = (" first", " second")
_REPLY = "\n\nAssistant:"


def pair_up(
    chosen: str, rejected: str, group: str | None, rng: Random, prompt: str | None = None
) -> Item | None:
    """Return both dialogues in random order; None if they are equal.

    Args:
        chosen, rejected: The dialogues.
        group: Name that related pairs share.
        rng: Decides the order.
        prompt: Text with which both dialogues begin; None: ``shared_prompt`` of them.
    """
    if chosen == rejected:
        return None
    second = int(rng.random() < 0.5)
    one, two = (rejected, chosen) if second else (chosen, rejected)
    prompt = shared_prompt(chosen, rejected) if prompt is None else prompt
    return Item(one, second, group, pair=two, prompt=prompt)


def shared_prompt(one: str, two: str) -> str:
    """Return the turns that two dialogues share, up to the last reply's "Assistant:".

    For texts of another format, the words that both begin with.
    """
    shared = os.path.commonprefix([one, two])
    if _REPLY in shared:
        return shared[: shared.rindex(_REPLY) + len(_REPLY)]
    words = re.match(r"(?s)(.*\S)(?=\s)", shared)
    return words[1] if words else ""


def opening(dialogue: str) -> str:
    """Return a dialogue up to its first reply, in the format of Anthropic's sets, squeezed."""
    return squeeze(dialogue.split(_REPLY)[0])


def shared_opening(one: str, two: str) -> str | None:
    """Return the opening that two dialogues share; None if they do not have that format."""
    first = opening(one)
    return first if _REPLY in one and first == opening(two) else None


def joined(prompt: str, answer: str) -> str:
    """Return prompt and answer as one text.

    A line break separates them if neither has white space there. An answer that already starts
    with its prompt is not changed.
    """
    if answer.startswith(prompt):
        return answer
    separator = "" if prompt[-1:].isspace() or answer[:1].isspace() else "\n"
    return f"{prompt}{separator}{answer}"
