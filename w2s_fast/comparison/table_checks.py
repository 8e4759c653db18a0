"""Find files that contradict each other, and files whose numbers may belong to another model.

Contradictions are errors: no number would be right. Equal numbers are warnings: two seeds may share
one ceiling on purpose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from w2s_fast.comparison.prediction_table import PredictionTable
from w2s_fast.errors import W2SError

# Largest difference between probabilities of one model that were rounded to three decimals.
ROUNDING = 5e-4
_MOST_NAMED = 3  # of ids or models in a message


def check_gold(tables: Sequence[PredictionTable]) -> None:
    """Check that classes, and the true class of every id, are the same in all files.

    Raises:
        W2SError: They are not.
    """
    first: dict[str, tuple[int, PredictionTable]] = {}
    for table in tables:
        if table.classes != tables[0].classes:
            raise W2SError(
                f"{table.model.file} has the classes {', '.join(table.classes)}, "
                f"{tables[0].model.file} {', '.join(tables[0].classes)}; expected the same in "
                "every file, in the same order"
            )
        for name, gold in zip(table.ids, table.gold.tolist(), strict=True):
            before, other = first.setdefault(name, (gold, table))
            if before != gold:
                raise W2SError(
                    f"item {name!r} has gold {table.classes[before]} in {other.model.file} and "
                    f"{table.classes[gold]} in {table.model.file}; correct one of them, or give "
                    "different items different ids"
                )


def groups_of_items(tables: Sequence[PredictionTable]) -> dict[str, str]:
    """Return the group of every item for which a file names one.

    Raises:
        W2SError: Two files name different groups.
    """
    first: dict[str, tuple[str, PredictionTable]] = {}
    for table in tables:
        for name, group in zip(table.ids, table.groups or (), strict=table.groups is not None):
            before, other = first.setdefault(name, (group, table))
            if before != group:
                raise W2SError(
                    f"item {name!r} has group {before!r} in {other.model.file} and {group!r} in "
                    f"{table.model.file}; correct one of them"
                )
    return {name: group for name, (group, _) in first.items()}


def check_items(tables: Sequence[PredictionTable]) -> None:
    """Check that all models of one seed predict the same items.

    Raises:
        W2SError: They do not; the message names the items.
    """
    expected = set(tables[0].ids)
    for table in tables[1:]:
        own = set(table.ids)
        for missing, there, lacking in (
            (expected - own, tables[0], table),
            (own - expected, table, tables[0]),
        ):
            if missing:
                raise W2SError(
                    f"{lacking.model.file} lacks {len(missing)} of the {len(there.ids)} items of "
                    f"{there.model.file}, such as {_named(sorted(missing))}; predict the same test "
                    "items with every model of a seed"
                )


def find_warnings(tables: Sequence[PredictionTable]) -> list[str]:
    """Return a line for each set of files with equal numbers, and for items that are mixed up."""
    lines = []
    seen: list[list[int]] = []
    for same, text in (
        (_same_file, "are the same file"),
        (_same_numbers, "have the same probabilities on all items"),
        (_same_to_rounding, f"differ by at most {ROUNDING:g} in every probability"),
    ):
        for members in _clusters(tables, same):
            if any(set(members) <= set(known) for known in seen):
                continue
            seen.append(members)
            names = [f"{tables[i].model.title} ({tables[i].model.file})" for i in members]
            lines.append(f"{' and '.join(names)} {text}: one may carry the numbers of another")
    return [*lines, *_double_items(tables), *_other_texts(tables)]


def _clusters(
    tables: Sequence[PredictionTable], same: Callable[[PredictionTable, PredictionTable], bool]
) -> list[list[int]]:
    """Return the sets of two and more tables that the relation connects."""
    from scipy.sparse.csgraph import connected_components

    connected = np.zeros((len(tables), len(tables)), dtype=bool)
    for i, j in itertools.combinations(range(len(tables)), 2):
        connected[i, j] = same(tables[i], tables[j])
    _, cluster = connected_components(connected, directed=False)
    members = [np.flatnonzero(cluster == c).tolist() for c in range(cluster.max() + 1)]
    return [own for own in members if len(own) > 1]


def _same_file(a: PredictionTable, b: PredictionTable) -> bool:
    return a.digest == b.digest


def _same_numbers(a: PredictionTable, b: PredictionTable) -> bool:
    return _largest_difference(a, b) == 0


def _same_to_rounding(a: PredictionTable, b: PredictionTable) -> bool:
    return _largest_difference(a, b) <= ROUNDING


def _largest_difference(a: PredictionTable, b: PredictionTable) -> float:
    """Return the largest difference of two tables; infinite for different numbers of items.

    Items are paired by id. Where no id is in both, as with test sets of different seeds, they are
    paired by their order, because copied numbers may stand under new ids.
    """
    if len(a.ids) != len(b.ids):
        return float("inf")
    if set(a.ids) == set(b.ids):
        return float(np.abs(a.probs - b.probs[b.rows_of(a.ids)]).max())
    return float(np.abs(a.probs - b.probs).max())


def _double_items(tables: Sequence[PredictionTable]) -> Iterator[str]:
    """Yield a line on items that are in the test set of a seed under two ids."""
    done: set[frozenset[str]] = set()
    for table in tables:
        items = frozenset(table.ids)
        if items in done:
            continue
        done.add(items)
        own = [t for t in tables if frozenset(t.ids) == items]
        pairs, reason = _double_ids(own)
        if pairs:
            named = _named([" = ".join(pair) for pair in pairs])
            yield (
                f"{len(pairs)} items of {own[0].model.file} may be there under two ids ({named}): "
                f"{reason}; items that count twice make intervals too narrow"
            )


def _double_ids(own: Sequence[PredictionTable]) -> tuple[list[tuple[str, ...]], str]:
    """Return the ids that share an item, and why they seem to."""
    ids = own[0].ids
    with_text = next((t for t in own if t.texts is not None), None)
    if with_text is not None and with_text.texts is not None:
        return _repeated(with_text.ids, with_text.texts), "they have the same text"
    if len(own) < 2:
        return [], ""
    order = [t.rows_of(ids) for t in own]
    values = np.concatenate([t.probs[rows] for t, rows in zip(own, order, strict=True)], axis=1)
    precise = np.all([t.precise[rows] for t, rows in zip(own, order, strict=True)], axis=0)
    keys = [values[i].tobytes() if precise[i] else i for i in range(len(ids))]
    return _repeated(ids, keys), "every model gives them the same probabilities"


def _repeated(ids: Sequence[str], keys: Sequence[object]) -> list[tuple[str, ...]]:
    by_key: dict[object, list[str]] = {}
    for name, key in zip(ids, keys, strict=True):
        by_key.setdefault(key, []).append(name)
    return [tuple(names) for names in by_key.values() if len(names) > 1]


def _other_texts(tables: Sequence[PredictionTable]) -> Iterator[str]:
    """Yield a line on each file that has other texts under the ids of an earlier file."""
    first: dict[str, tuple[str, str]] = {}
    for table in tables:
        names: dict[str, list[str]] = {}
        for name, text in zip(table.ids, table.texts or (), strict=table.texts is not None):
            before, file = first.setdefault(name, (text.strip(), table.model.file))
            if before != text.strip():
                names.setdefault(file, []).append(name)
        for file, own in names.items():
            yield (
                f"{len(own)} items have another text in {table.model.file} than in {file} "
                f"({_named(own)}): one may be of other items"
            )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(repr, names[:_MOST_NAMED])) + more
