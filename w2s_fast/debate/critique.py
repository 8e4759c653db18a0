"""A weak critic of a strong model's answer: two protocols, one after the other.

`answer`: the strong model argues for the class that it ranks first itself. `critique`: a critic, as
a rule the weak model, reads item and argument and says what to look at again; it neither solves the
item nor judges the answer. A transcript has both. What the strong model then answers after it is
its revised answer.

Source: Jin et al. 2026, Weak Critics Make Strong Learners (arXiv 2606.00424); the wording of the
prompts is this package's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import numpy as np

from w2s_fast.debate.protocols import Consultancy, Protocol, Writer
from w2s_fast.errors import W2SError

CRITIC = "Critic:"
_FRAME = (
    "An adviser has answered the item below and given reasons. The adviser knows more than you do, "
    "but may have missed something."
)
_ROLE = (
    "You are the critic. Say what in these reasons holds, what is wrong or left out, and what the "
    "adviser should look at again before the answer is final. Write one short paragraph, point to "
    "particular words, and give no verdict of your own."
)
_LABEL = re.compile(r'^[ \t]*(?:Critic|Adviser, for ".*?"):', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Answer(Consultancy):
    """The strong model argues for the class that it ranks first itself."""

    judged = True

    def sides(self, rng: Random, n_classes: int, weak: np.ndarray | None) -> tuple[int, ...]:
        """Return the most likely class of ``weak``: here the strong model's own probabilities."""
        assert weak is not None
        return (int(weak.argmax()),)


@dataclass(frozen=True, kw_only=True)
class Critique(Protocol):
    """A critic reads item and argument, and adds one turn to the transcript."""

    by_critic: ClassVar[bool] = True

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
        """Return the transcripts ``before``, each with the turn of the critic.

        Args:
            items, ids, verdicts, write, seed, weak: See ``Protocol.transcripts``; of these, the
                critic reads the items alone.
            before: N transcripts, as a rule of ``Answer``.

        Raises:
            W2SError: ``before`` is missing.
        """
        if before is None:
            raise W2SError("Critique needs transcripts to criticise; pass before")
        rows = zip(items, before, strict=True)
        prompts = [
            "\n\n".join([_FRAME, f"Item:\n{item.strip()}", f"Reasons:\n{text}", _ROLE, CRITIC])
            for item, text in rows
        ]
        seeds = [Random(f"{seed}/{key}/critic").getrandbits(31) for key in ids]
        written = write(prompts, seeds)
        return [f"{t}\n{CRITIC} {_spoken(c)}" for t, c in zip(before, written, strict=True)]


def _spoken(text: str) -> str:
    """Return the critique alone, without a repeated label and turns of other speakers."""
    text = text.strip().removeprefix(CRITIC)
    if other := _LABEL.search(text):
        text = text[: other.start()]
    return text.strip()
