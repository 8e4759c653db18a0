"""Protocols of arguments about an item: debate, consultancy, market-making.

Source: Lang, Huang & Li 2025 (arXiv 2501.13124), three turns of two copies of the strong model and
the two baselines; the wording of the prompts is this package's own. With more than two classes,
which the paper does not have, a debate is about two of them drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import numpy as np

from w2s_fast.debate._prompts import ANSWER, ATTACK, OPEN, Turn, line, prompt
from w2s_fast.errors import W2SError

# (N prompts, N seeds) -> N texts
Writer = Callable[[Sequence[str], Sequence[int]], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Base of all protocols; a subclass defines the sides and the turns.

    Attributes:
        judged: Whether it uses the weak model's predictions.
        by_critic: Whether ``critic_writer`` writes its turns, not ``transcript_writer``.
    """

    judged: ClassVar[bool] = False
    by_critic: ClassVar[bool] = False

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """Return the class that each side defends for one item.

        Args:
            rng: Random source of the item.
            n_classes: Number of classes C.
            weak: (C,) probabilities of the weak model if ``judged``.
        """
        raise TypeError(f"{type(self).__name__} must define sides")

    def turn_plan(self) -> tuple[Turn, ...]:
        """Return the turns, in order."""
        raise TypeError(f"{type(self).__name__} must define turn_plan")

    def transcripts(
        self,
        items: Sequence[str],
        ids: Sequence[str],
        verdicts: Sequence[str],
        write: Writer,
        seed: int,
        weak: np.ndarray | None = None,
        before: Sequence[str] | None = None,
    ) -> list[str]:
        """Return one transcript per item, a function of item, id, seed and writer alone.

        Args:
            items: N items as questions.
            ids: N ids; with ``seed`` they determine the sides.
            verdicts: Names of the C classes.
            write: Turns prompts into texts; called once per turn with all items.
            seed: Seed of the sample.
            weak: (N, C) class probabilities of the weak model if the protocol is ``judged``.
            before: N transcripts that the turns continue; None: there are none.

        Raises:
            W2SError: ``weak`` is missing.
        """
        if self.judged and weak is None:
            raise W2SError(
                f"{type(self).__name__} needs the predictions of the weak model; pass weak"
            )
        judged = [None] * len(ids) if weak is None else list(weak)
        names = []
        for key, probs in zip(ids, judged, strict=True):
            sides = self.sides(Random(f"{seed}/{key}"), len(verdicts), probs)
            names.append([verdicts[k] for k in sides])
        transcripts = [[] for _ in ids] if before is None else [[text] for text in before]
        for number, turn in enumerate(self.turn_plan()):
            rows = zip(items, names, transcripts, strict=True)
            prompts = [prompt(item, mine, turn, lines) for item, mine, lines in rows]
            seeds = [Random(f"{seed}/{key}/{number}").getrandbits(31) for key in ids]
            for lines, mine, text in zip(transcripts, names, write(prompts, seeds), strict=True):
                lines.append(line(turn, mine, text))
        return ["\n".join(lines) for lines in transcripts]


@dataclass(frozen=True, kw_only=True)
class Debate(Protocol):
    """A argues for a random verdict, B for another and against A's argument; A replies.

    Attributes:
        turns: Number of turns of both together; beyond 3 they continue to reply alternately.
    """

    turns: int = 3

    def __post_init__(self) -> None:
        if self.turns < 2:
            raise W2SError(f"Debate: turns is {self.turns}; expected at least 2, one per side")

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """Return two different classes, all ordered pairs equally likely."""
        return tuple(rng.sample(range(n_classes), 2))

    def turn_plan(self) -> tuple[Turn, ...]:
        """Return alternating turns of A and B."""
        moves = [OPEN, ATTACK, *[ANSWER] * (self.turns - 2)]
        return tuple(Turn(i % 2, move) for i, move in enumerate(moves))


@dataclass(frozen=True, kw_only=True)
class Consultancy(Protocol):
    """One speaker argues for a random verdict."""

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """Return one class, all equally likely."""
        return (rng.randrange(n_classes),)

    def turn_plan(self) -> tuple[Turn, ...]:
        """Return one turn."""
        return (Turn(0, OPEN),)


@dataclass(frozen=True, kw_only=True)
class MarketMaking(Consultancy):
    """One speaker argues for the verdict that the weak model ranks second."""

    judged = True

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """Return the second most likely class."""
        assert weak is not None
        return (int(np.argsort(-weak, kind="stable")[1]),)
