"""Faults of pairs that come from elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from w2s_fast.reasoning.equality import Verdict, check_rule, compare_answers, is_readable
from w2s_fast.reasoning.reading import Reader, get_reader
from w2s_fast.reasoning.rows import check_columns


@dataclass(frozen=True)
class PairCheck:
    """Faults of given pairs, tuples of ids; a pair may have several.

    Attributes:
        n: Pairs.
        equal_texts: Both sides are the same text.
        equal_answers: Both sides have equal answers, so nothing in the answer is preferred.
        empty: A side is blank.
        unreadable_chosen: The chosen side has no readable answer.
        unreadable_rejected: The rejected side has no readable answer.
        undecided: The comparison of the answers failed or took too long.
    """

    n: int
    equal_texts: tuple[Hashable, ...]
    equal_answers: tuple[Hashable, ...]
    empty: tuple[Hashable, ...]
    unreadable_chosen: tuple[Hashable, ...]
    unreadable_rejected: tuple[Hashable, ...]
    undecided: tuple[Hashable, ...]


def check_pairs(
    ids: Sequence[Hashable],
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    read: str | Reader = "marked",
    rule: str = "math",
) -> PairCheck:
    """Find the faults of pairs that come from elsewhere; nothing is removed.

    Args:
        ids: N different ids.
        chosen, rejected: N texts each.
        read, rule: As in `select_agreeing`.

    Raises:
        W2SError: Columns differ in length, an id occurs twice, or reader or rule is unknown.
    """
    check_columns(ids, chosen=chosen, rejected=rejected)
    check_rule(rule)
    reader = get_reader(read)
    faults: dict[str, list[Hashable]] = {
        name: [] for name in PairCheck.__dataclass_fields__ if name != "n"
    }
    for item_id, one, other in zip(ids, chosen, rejected, strict=True):
        for fault in _faults(one, other, reader, rule):
            faults[fault].append(item_id)
    return PairCheck(len(ids), **{name: tuple(items) for name, items in faults.items()})


def _faults(chosen: str, rejected: str, read: Reader, rule: str) -> list[str]:
    faults = []
    if chosen.strip() == rejected.strip():
        faults.append("equal_texts")
    if not chosen.strip() or not rejected.strip():
        faults.append("empty")
    answers = {"chosen": read(chosen), "rejected": read(rejected)}
    for side, answer in answers.items():
        if not is_readable(answer, rule):
            faults.append(f"unreadable_{side}")
    verdict = compare_answers(answers["chosen"], answers["rejected"], rule)
    if verdict is Verdict.EQUAL:
        faults.append("equal_answers")
    if verdict is Verdict.UNDECIDED:
        faults.append("undecided")
    return faults
