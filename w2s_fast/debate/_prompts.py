"""Prompts of the speakers, and the form of turns in a transcript."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FRAMES = {
    1: "An adviser speaks about the item below to a judge who knows less about it, and has been "
    'given a verdict to defend: "{0}".',
    2: "Two debaters discuss the item below before a judge who knows less about it. Each has been "
    'given a verdict to defend: A has "{0}", B has "{1}".',
}
_ROLE = (
    "You are {speaker}. {move} Write one short paragraph, speak for yourself alone, and stay with "
    "your verdict."
)
OPEN = (
    'Make the case for "{own}": the facts, and the steps that lead from them to the verdict, so '
    "that the judge can follow and check each of them."
)
ATTACK = (
    'Make the case for "{own}" and against "{other}", and list what is wrong in the argument of '
    "{opponent}, point by point."
)
ANSWER = (
    "Reply to what {opponent} said last: take its objections one at a time, say where each fails, "
    'and why "{own}" still holds.'
)
_LABEL = re.compile(r'^[ \t]*(?:A|B|Adviser), for ".*?":', re.MULTILINE)


@dataclass(frozen=True)
class Turn:
    """One turn of a protocol.

    Attributes:
        side: The speaker, an index into the verdicts of the item.
        move: Instruction for the speaker.
    """

    side: int
    move: str


def prompt(item: str, verdicts: Sequence[str], turn: Turn, lines: Sequence[str]) -> str:
    """Return the writer's prompt for one turn about one item.

    Args:
        item: The item as a question.
        verdicts: Names of the classes that are defended, one per side.
        turn: The turn.
        lines: The previous turns.
    """
    speaker = name(turn.side, len(verdicts))
    move = turn.move.format(
        own=verdicts[turn.side],
        other=verdicts[-1 - turn.side],
        opponent=name(1 - turn.side, len(verdicts)),
    )
    history = ["So far:", *lines] if lines else []
    parts = [_FRAMES[len(verdicts)].format(*verdicts), f"Item:\n{item.strip()}", *history]
    parts += [_ROLE.format(speaker=speaker, move=move), label(turn.side, verdicts)]
    return "\n\n".join(parts)


def line(turn: Turn, verdicts: Sequence[str], text: str) -> str:
    """Return the turn in the transcript: speaker, verdict, argument."""
    return f"{label(turn.side, verdicts)} {spoken(text)}"


def label(side: int, verdicts: Sequence[str]) -> str:
    """Return the label at the start of a turn."""
    return f'{name(side, len(verdicts))}, for "{verdicts[side]}":'


def name(side: int, sides: int) -> str:
    """Return the name of a speaker."""
    return "Adviser" if sides == 1 else "AB"[side]


def spoken(text: str) -> str:
    """Return the argument alone, without repeated labels and turns of other speakers."""
    text = text.strip()
    if own := _LABEL.match(text):
        text = text[own.end() :]
    if other := _LABEL.search(text):
        text = text[: other.start()]
    return text.strip()
