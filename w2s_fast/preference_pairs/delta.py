"""Delta learning: pairs of a weak text and a weaker one, preferred by the size of their authors.

    (x_i, chosen = y_i of the stronger generator, rejected = y_i of the weaker generator)

No judge compares the texts: the difference in quality between the generators is the signal. In the
paper both generators are weaker than the student, their texts are greedy, and the loss is `DPONorm`
with beta 5. Finetuning on the chosen texts alone is the ablation that hurts.

Source: Geng et al. 2025 (arXiv 2507.06187), section 4, and their released code.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.reasoning.rows import Row, check_columns, pair_row


@dataclass(frozen=True)
class DeltaReport:
    """What became of every item; each of the N items is in exactly one of the tuples of ids.

    Attributes:
        paired: A pair.
        equal_texts: Both texts are equal, so neither is preferred.
        blank_stronger: The stronger generator's text is blank, the other is not.
        blank_weaker: The weaker generator's text is blank, the other is not.
        blank_both: Both texts are blank.
    """

    paired: tuple[Hashable, ...]
    equal_texts: tuple[Hashable, ...]
    blank_stronger: tuple[Hashable, ...]
    blank_weaker: tuple[Hashable, ...]
    blank_both: tuple[Hashable, ...]

    def __str__(self) -> str:
        counts = {name: len(ids) for name, ids in vars(self).items()}
        return f"{sum(counts.values())} items: " + ", ".join(f"{n} {k}" for k, n in counts.items())


@dataclass(frozen=True)
class DeltaPairs:
    """Pairs of two generators.

    Attributes:
        rows: Rows of id, prompt, chosen and rejected in the order of the items.
        report: What became of every item.
    """

    rows: tuple[Row, ...]
    report: DeltaReport


def delta_pairs(
    ids: Sequence[Hashable],
    prompts: Sequence[str],
    stronger: Sequence[str],
    weaker: Sequence[str],
) -> DeltaPairs:
    """Pair the texts of a stronger generator with those of a weaker one.

    White space at the ends of a text makes no difference between texts. A blank text is used on
    neither side, because a completion has at least one token.

    Args:
        ids: N different ids.
        prompts: N prompts.
        stronger: N texts of the stronger generator, the chosen sides.
        weaker: N texts of the weaker generator, the rejected sides.

    Returns:
        At most one pair an item, and what became of every item.

    Raises:
        W2SError: Columns differ in length, an id occurs twice, or a value is no text.
    """
    check_columns(ids, prompts=prompts, stronger=stronger, weaker=weaker)
    names = tuple(DeltaReport.__dataclass_fields__)
    outcomes: dict[str, list[Hashable]] = {name: [] for name in names}
    rows = []
    for item_id, prompt, chosen, rejected in zip(ids, prompts, stronger, weaker, strict=True):
        outcome = _outcome(chosen, rejected)
        outcomes[outcome].append(item_id)
        if outcome == "paired":
            rows.append(pair_row(item_id, prompt, chosen, rejected))
    report = DeltaReport(**{name: tuple(items) for name, items in outcomes.items()})
    return DeltaPairs(tuple(rows), report)


def reversed_pairs(rows: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Exchange the sides of pairs, for a control in which the preference points the other way.

    Args:
        rows: Rows with the keys chosen and rejected; other keys are kept.

    Raises:
        W2SError: A row lacks one of the sides.
    """
    _check_sides(rows, "chosen", "rejected")
    return tuple({**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows)


def chosen_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Return the chosen sides as rows of id, prompt and answer, for finetuning without a contrast.

    Args:
        rows: Rows with the keys id, prompt and chosen.

    Raises:
        W2SError: A row lacks one of the keys.
    """
    _check_sides(rows, "id", "prompt", "chosen")
    return tuple({"id": r["id"], "prompt": r["prompt"], "answer": r["chosen"]} for r in rows)


def _outcome(stronger: str, weaker: str) -> str:
    chosen, rejected = stronger.strip(), weaker.strip()
    if not chosen or not rejected:
        return "blank_both" if chosen == rejected else f"blank_{'weaker' if chosen else 'stronger'}"
    return "equal_texts" if chosen == rejected else "paired"


def _check_sides(rows: Sequence[Mapping[str, Any]], *keys: str) -> None:
    for number, row in enumerate(rows):
        missing = [key for key in keys if key not in row]
        if missing:
            raise W2SError(
                f"row {number} has the keys {', '.join(map(repr, row))}; expected also "
                f"{missing[0]!r}: pass the rows of `delta_pairs` or `step_pairs`"
            )
