"""Who argues which verdict about an item, and in which order: debate, consultancy, market-making.

Source: Lang, Huang & Li 2025 (arXiv 2501.13124), three turns of two copies of the strong model and
the two baselines; the sentences of the prompts are this package's own. With more than two classes,
which the paper has not, a debate is about two of them drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import numpy as np

from w2s_fast.debate._prompts import ANSWER, ATTACK, OPEN, Turn, line, prompt
from w2s_fast.errors import W2SError

# N prompts and a seed for each -> N texts.
Writer = Callable[[Sequence[str], Sequence[int]], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Base of all protocols. A subclass says who defends what, and in which turns.

    Attributes:
        judged: Whether it asks what the weak model thinks.
    """

    judged: ClassVar[bool] = False

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """The class that each side defends for one item.

        Args:
            rng: The item's own.
            n_classes: C.
            weak: (C,) probabilities of the weak model, where ``judged``.
        """
        raise TypeError(f"{type(self).__name__} must define sides")

    def plan(self) -> tuple[Turn, ...]:
        """The turns, in order."""
        raise TypeError(f"{type(self).__name__} must define plan")

    def transcripts(
        self,
        items: Sequence[str],
        ids: Sequence[str],
        verdicts: Sequence[str],
        write: Writer,
        seed: int,
        weak: np.ndarray | None = None,
    ) -> list[str]:
        """One transcript an item; a function of the item, its id, the seed and the writer alone.

        Args:
            items: N items as questions.
            ids: N ids; with ``seed`` they decide who defends what.
            verdicts: Names of the C classes.
            write: Turns prompts into texts; called once a turn with all items.
            seed: Of the sample.
            weak: (N, C) class probabilities of the weak model, where the protocol is ``judged``.

        Raises:
            W2SError: ``weak`` is missing.
        """
        if self.judged and weak is None:
            raise W2SError(f"{type(self).__name__} argues against the weak model; give its labels")
        judged = [None] * len(ids) if weak is None else list(weak)
        names = []
        for key, probs in zip(ids, judged, strict=True):
            sides = self.sides(Random(f"{seed}/{key}"), len(verdicts), probs)
            names.append([verdicts[k] for k in sides])
        said: list[list[str]] = [[] for _ in ids]
        for number, turn in enumerate(self.plan()):
            rows = zip(items, names, said, strict=True)
            prompts = [prompt(item, mine, turn, lines) for item, mine, lines in rows]
            seeds = [Random(f"{seed}/{key}/{number}").getrandbits(31) for key in ids]
            for lines, mine, text in zip(said, names, write(prompts, seeds), strict=True):
                lines.append(line(turn, mine, text))
        return ["\n".join(lines) for lines in said]


@dataclass(frozen=True, kw_only=True)
class Debate(Protocol):
    """A argues a verdict drawn at random; B another one and the flaws of A; A answers.

    Attributes:
        turns: Of both together; above 3 they go on answering each other in turn.
    """

    turns: int = 3

    def __post_init__(self) -> None:
        if self.turns < 2:
            raise W2SError(f"Debate: turns is {self.turns}; expected at least 2, one a side")

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """Two different classes, every ordered pair as likely."""
        return tuple(rng.sample(range(n_classes), 2))

    def plan(self) -> tuple[Turn, ...]:
        """A and B in turn."""
        moves = [OPEN, ATTACK, *[ANSWER] * (self.turns - 2)]
        return tuple(Turn(i % 2, move) for i, move in enumerate(moves))


@dataclass(frozen=True, kw_only=True)
class Consultancy(Protocol):
    """One speaker, who argues a verdict drawn at random."""

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """Any class, all as likely."""
        return (rng.randrange(n_classes),)

    def plan(self) -> tuple[Turn, ...]:
        """One turn."""
        return (Turn(0, OPEN),)


@dataclass(frozen=True, kw_only=True)
class MarketMaking(Consultancy):
    """One speaker, who argues the verdict that the weak model did not pick.

    With more than two classes, the one that it finds second most likely.
    """

    judged = True

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """The second most likely class."""
        assert weak is not None
        return (int(np.argsort(-weak, kind="stable")[1]),)
