"""The majority answer of several samples, and how confident it is.

    a+ = the most frequent answer,  confidence = (samples with a+) / (all samples)

Samples whose answer cannot be read vote for nothing but count as samples. Source: Wang et al. 2023
(arXiv 2203.11171), self-consistency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.reasoning.equality import Verdict, check_rule, compare_answers, is_readable
from w2s_fast.reasoning.reading import Reader, get_reader
from w2s_fast.verifiers import majority_verifier


@dataclass(frozen=True)
class Vote:
    """The vote of k samples of one prompt.

    Attributes:
        answer: The majority answer, as its first sample spells it; "" if no answer can be read.
        confidence: Share of all k samples that have it; 0 if there is none.
        agreeing: Samples with this answer, positions in order.
        disagreeing: The other samples, those without a readable answer included.
        unreadable: Samples without a readable answer.
    """

    answer: str
    confidence: float
    agreeing: tuple[int, ...]
    disagreeing: tuple[int, ...]
    unreadable: tuple[int, ...]


def vote(samples: Sequence[str], *, read: str | Reader = "marked", rule: str = "math") -> Vote:
    """Return the majority answer of the samples of one prompt; the first of equally frequent ones.

    Args:
        samples: k solutions.
        read, rule: As in `select_agreeing`.

    Raises:
        W2SError: There are no samples, or reader or rule is unknown.
    """
    if isinstance(samples, str) or not len(samples):
        raise W2SError(f"samples are {samples!r}; expected at least one text")
    reader = get_reader(read)
    answers = [reader(text) for text in samples]
    classes = answer_classes(answers, rule)
    unreadable = tuple(i for i, c in enumerate(classes) if c is None)
    if len(unreadable) == len(samples):
        return Vote("", 0.0, (), tuple(range(len(samples))), unreadable)
    names = [None if c is None else str(c) for c in classes]
    winner = classes[int(np.argmax(majority_verifier(names, [0] * len(names))))]
    agreeing = tuple(i for i, c in enumerate(classes) if c == winner)
    disagreeing = tuple(i for i, c in enumerate(classes) if c != winner)
    confidence = len(agreeing) / len(samples)
    return Vote(answers[agreeing[0]], confidence, agreeing, disagreeing, unreadable)


def answer_classes(answers: Sequence[str], rule: str = "math") -> list[int | None]:
    """Number the classes of equal answers in the order of their first members; None: unreadable.

    An answer joins the first class whose first member it equals, which is defined although equality
    by "math" is not transitive. A comparison that fails separates the two.

    Raises:
        W2SError: The rule is unknown, or needs math-verify, which is not installed.
    """
    check_rule(rule)
    known: dict[str, int | None] = {}
    firsts: list[str] = []
    for answer in answers:
        if answer not in known:
            known[answer] = _class(answer, firsts, rule)
    return [known[answer] for answer in answers]


def _class(answer: str, firsts: list[str], rule: str) -> int | None:
    if not is_readable(answer, rule):
        return None
    for number, first in enumerate(firsts):
        if compare_answers(answer, first, rule) is Verdict.EQUAL:
            return number
    firsts.append(answer)
    return len(firsts) - 1
