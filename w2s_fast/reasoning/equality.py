r"""Equality of two answers, by one of three rules, with a verdict for what cannot be compared.

    math     equal as mathematics: 0.5 = 1/2, 300,000 = 300000, 2 + 7 = 9 has the answer 9
    number   equal final numbers, in canonical spelling: 1,000 = $1000.0
    string   equal characters, apart from white space around them

``math`` is the decision of math-verify, which rounds decimals to 6 places and equates 75 and 75 %
and 0.75 and 75 %: it is not transitive. ``string`` is the rule of the released code of Yang, Ma and
Liu (2024), for reproduction. An answer that cannot be read equals none, not even itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from fractions import Fraction
from functools import lru_cache

from w2s_fast.errors import W2SError, nearest
from w2s_fast.reasoning._math_process import MathProcess, check_installed
from w2s_fast.tasks._answer_parsing import final_number

_PLAIN = re.compile(r"(?:\$?([-+]?)|([-+])\$)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")
_LONGEST = 2000  # characters of an answer; a longer one is a derivation, not an answer
_math = MathProcess()


class Verdict(Enum):
    """The result of a comparison of two answers."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"  # one of them is no answer by the rule
    UNDECIDED = "undecided"  # the comparison failed, or took too long


def compare_answers(first: str, second: str, rule: str = "math") -> Verdict:
    """Compare two answers; the order does not matter.

    Args:
        first, second: Answers, as a reader returned them: not whole texts.
        rule: "math", "number" or "string".

    Raises:
        W2SError: The rule is unknown, or needs math-verify, which is not installed.
    """
    check_rule(rule)
    one, other = sorted((first.strip(), second.strip()))
    if not one or not other:
        return Verdict.UNREADABLE
    return RULES[rule](one, other)


def answers_equal(first: str, second: str, rule: str = "math") -> bool | None:
    """Return whether two answers are equal; None if that cannot be decided.

    None is not False: count it. `compare_answers` tells an answer that cannot be read from a
    comparison that failed.

    Args:
        first, second: Answers, as a reader returned them: not whole texts.
        rule: "math", "number" or "string".

    Raises:
        W2SError: The rule is unknown, or needs math-verify, which is not installed.
    """
    verdict = compare_answers(first, second, rule)
    return verdict is Verdict.EQUAL if verdict in (Verdict.EQUAL, Verdict.DIFFERENT) else None


def is_readable(answer: str, rule: str = "math") -> bool:
    """Return whether a rule can read an answer, that is whether the answer equals itself.

    Raises:
        W2SError: The rule is unknown, or needs math-verify, which is not installed.
    """
    return compare_answers(answer, answer, rule) is Verdict.EQUAL


def check_rule(rule: str) -> None:
    """Raise `W2SError` unless answers can be compared by ``rule`` here."""
    if rule not in RULES:
        raise W2SError(
            f"rule is {rule!r}; expected one of {', '.join(RULES)}{nearest(str(rule), RULES)}"
        )
    if rule == "math":
        check_installed()


def _string(one: str, other: str) -> Verdict:
    return Verdict.EQUAL if one == other else Verdict.DIFFERENT


def _number(one: str, other: str) -> Verdict:
    numbers = final_number(one), final_number(other)
    return _string(*numbers) if all(numbers) else Verdict.UNREADABLE


def _math_verdict(one: str, other: str) -> Verdict:
    values = _plain_value(one), _plain_value(other)
    if values[0] is not None and values[1] is not None:
        if values[0] == values[1]:
            return Verdict.EQUAL
        if values[0].denominator == values[1].denominator == 1:
            return Verdict.DIFFERENT
    if max(len(one), len(other)) > _LONGEST:
        return Verdict.UNREADABLE
    return _by_math_verify(one, other)


@lru_cache(maxsize=1 << 16)
def _by_math_verify(one: str, other: str) -> Verdict:
    return Verdict[_math.compare(one, other)]


def _plain_value(answer: str) -> Fraction | None:
    """Return the value of a decimal number, None for any other answer.

    Numbers with equal values, and different integers, need no computer algebra.
    """
    match = _PLAIN.fullmatch(answer)
    if match is None or len(answer) > 100:
        return None
    sign, sign_of_money, whole, decimals = match.groups()
    return Fraction(f"{sign or sign_of_money or ''}{whole.replace(',', '')}{decimals or ''}")


RULES: dict[str, Callable[[str, str], Verdict]] = {
    "math": _math_verdict,
    "number": _number,
    "string": _string,
}
