"""Split rows: ids, groups of related rows, and a deterministic, balanced draw."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.tasks._base import Examples, TaskData
from w2s_fast.tasks._config import TaskConfig


def make_examples(
    texts: Sequence[str],
    labels: Sequence[int],
    pairs: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
    answers: Sequence[str] | None = None,
    subgroups: Sequence[str] | None = None,
    votes: np.ndarray | None = None,
    prompts: Sequence[str] | None = None,
) -> Examples:
    """Assign ids and join related rows: rows with equal texts, and rows of one group.

    Pass the rows of separate files together, so that relations between files are found.

    Args:
        texts: N texts.
        labels: N classes.
        pairs: N second texts, or None.
        groups: N group names, None for a row without one; or None for no groups.
        answers: N gold answers of a generation task, whose labels are ignored; else None.
        subgroups: N names of subgroups, or None.
        votes: (N, m) votes of weak supervisors, or None.
        prompts: N texts with which both texts of a preference begin, or None.
    """
    seconds: Sequence[str] = [""] * len(texts) if pairs is None else pairs
    ids: list[str] = []
    seen: dict[str, int] = {}
    for text, second in zip(texts, seconds, strict=True):
        digest = _digest(text, second)  # without the gold label, which ids would reveal
        count = seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if count == 1 else f"{digest}-{count}")
    same = [list(map(squeeze, both)) for both in zip(texts, seconds, strict=True)]
    if prompts is not None:  # a preference, whose two texts are in random order
        same = [sorted(both) for both in same]
    names = [None] * len(texts) if groups is None else groups
    return Examples(
        ids=tuple(ids),
        texts=tuple(texts),
        pairs=None if pairs is None else tuple(pairs),
        labels=np.asarray(labels, dtype=np.int64),
        groups=tuple(_join([_digest(*both) for both in same], names)),
        answers=None if answers is None else tuple(answers),
        subgroups=None if subgroups is None else tuple(subgroups),
        votes=votes,
        prompts=None if prompts is None else tuple(prompts),
    )


def split_pool(
    pool: Examples,
    test_pool: Examples | None,
    class_names: Sequence[str],
    cfg: TaskConfig,
    seed: int,
    source: str,
    test_source: str | None = None,
) -> TaskData:
    """Draw the three splits from shuffled rows, with whole groups and, by default, balanced
    classes.

    Test rows are drawn first, from their own random stream, so they do not depend on ``n_weak`` or
    ``n_transfer``. The other two splits get no row related to a row of ``test_pool``. A group that
    does not fit into the rest of a split is left for the next one; if only such groups remain, the
    smallest is cut and its surplus rows are dropped. Generation tasks have no classes to balance.

    Args:
        pool: Rows of ``weak`` and ``transfer``, and of ``test`` if ``test_pool`` is None.
        test_pool: Rows of a separate test set.
        class_names: Name of each class.
        cfg: Sizes, and whether to balance.
        seed: Seed of the draw.
        source: Name of the data in error messages.
        test_source: Name of ``test_pool``.

    Raises:
        W2SError: There are too few rows, or rows of one class only.
    """
    train, test = _sources(pool, test_pool, cfg, source, test_source or source)
    for each in dict.fromkeys((train, test)):
        _check_enough(each)
    drawn = class_names if pool.answers is None else ("answers",)
    fits = _unbalanced_fits if cfg.balance else _balanced_fits
    other_balance_fits = all(fits(each, len(drawn)) for each in (train, test))
    taken: set[str] = set()
    splits: dict[str, Examples] = {}
    for part in ("test", "weak", "transfer"):
        rows = test if part == "test" else train
        rng = Random(f"{seed}/{part}")
        splits[part] = _draw(rows, part, taken, drawn, cfg, rng, other_balance_fits)
        taken.update(splits[part].groups)
    kind = "classification" if pool.answers is None else "generation"
    weak, transfer = splits["weak"], splits["transfer"]
    return TaskData(cfg.name, tuple(class_names), weak, transfer, splits["test"], kind=kind)


@dataclass(frozen=True, eq=False)
class _Source:
    """Rows that splits are drawn from.

    Attributes:
        rows: The rows.
        sizes: Setting -> rows of each of these splits.
        name: Name of the data in messages.
        left_out: Words about rows that are not among ``rows``, for messages; "" if there are none.
    """

    rows: Examples
    sizes: dict[str, int]
    name: str
    left_out: str = ""


def _sources(
    pool: Examples, test_pool: Examples | None, cfg: TaskConfig, name: str, test_name: str
) -> tuple[_Source, _Source]:
    """Return the rows to train on and those to test on; with one file, these are the same."""
    sizes = {f"task.n_{part}": getattr(cfg, f"n_{part}") for part in ("weak", "transfer", "test")}
    if test_pool is None:
        one = _Source(pool, sizes, name)
        return one, one
    test = _Source(test_pool, {"task.n_test": sizes.pop("task.n_test")}, test_name)
    tested = set(test_pool.groups)
    free = [row for row, group in enumerate(pool.groups) if group not in tested]
    if len(free) == len(pool):
        return _Source(pool, sizes, name), test
    left_out = (
        f" without the {len(pool) - len(free)} of {len(pool)} that are left out because "
        f"{test_name} has their text or group too, as rows to test on"
    )
    return _Source(pool.take(free), sizes, name, left_out), test


def _draw(
    source: _Source,
    part: str,
    taken: set[str],
    class_names: Sequence[str],
    cfg: TaskConfig,
    rng: Random,
    other_balance_fits: bool,
) -> Examples:
    """Fill one split from the groups that are not taken, in random order."""
    size = source.sizes[f"task.n_{part}"]
    room = [size] * len(class_names)
    if cfg.balance:
        room = [size // len(room) + (c < size % len(room)) for c in range(len(room))]
    chosen = _fill(source.rows, taken, room, size, rng)
    if len(chosen) < size:
        short = max(range(len(room)), key=room.__getitem__)
        message = _shortage(source, part, size, len(chosen), room, class_names[short], cfg)
        if cfg.balance and other_balance_fits:
            message += ", or set task.balance=false"
        raise W2SError(message)
    rng.shuffle(chosen)  # rows of a group must not follow each other in training
    drawn = source.rows.take(chosen)
    if len(class_names) > 1 and len(set(drawn.labels.tolist())) < 2:
        fix = f"raise task.n_{part}, or add rows of other classes"
        if not cfg.balance and other_balance_fits:
            fix = f"raise task.n_{part} or set task.balance=true"
        raise W2SError(
            f"{source.name}: all {size} {part} rows drawn are of class "
            f"{class_names[int(drawn.labels[0])]!r}; {fix}"
        )
    return drawn


def _fill(pool: Examples, taken: set[str], room: list[int], size: int, rng: Random) -> list[int]:
    """Choose up to ``size`` rows; lower ``room``, the number of rows still missing per class."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(pool.groups):
        if group not in taken:
            members.setdefault(group, []).append(row)
    waiting = list(members.values())
    rng.shuffle(waiting)
    labels = pool.labels.tolist()
    chosen: list[int] = []
    for may_cut in (False, True):
        later = []
        # Cutting small groups first loses the fewest rows.
        for rows in sorted(waiting, key=len) if may_cut else waiting:
            if len(chosen) == size:
                return chosen
            need = Counter(labels[row] for row in rows)
            fits = len(chosen) + len(rows) <= size and all(room[c] >= n for c, n in need.items())
            if not (fits or may_cut):
                later.append(rows)
                continue
            for row in rows:
                if len(chosen) < size and room[labels[row]] > 0:
                    room[labels[row]] -= 1
                    chosen.append(row)
        waiting = later
    return chosen


def _shortage(
    source: _Source,
    part: str,
    size: int,
    drawn: int,
    room: list[int],
    short: str,
    cfg: TaskConfig,
) -> str:
    fix = "lower task.n_weak, task.n_transfer or task.n_test, or add rows"
    if not cfg.balance or len(room) == 1:
        return (
            f"{source.name}: task.n_{part}={size} but only {drawn} rows are left if groups stay "
            f"whole{source.left_out}; {fix}"
        )
    return (
        f"{source.name}: task.n_{part}={size} balanced over {len(room)} classes is {max(room)} "
        f"rows of class {short!r} short{source.left_out}; {fix}"
    )


def _balanced_fits(source: _Source, n_classes: int) -> bool:
    """Return whether every class has the rows of balanced splits, if groups were single rows."""
    counts = Counter(source.rows.labels.tolist())
    needed = sum(-(-size // n_classes) for size in source.sizes.values())
    return all(counts[c] >= needed for c in range(n_classes))


def _unbalanced_fits(source: _Source, n_classes: int) -> bool:
    """Return whether splits drawn at random probably have a second class.

    With three such rows expected, a split of one class has a probability of about exp(-3).
    """
    rows, sizes = source.rows, source.sizes.values()
    if len(rows) < sum(sizes):
        return False
    others = 1 - max(Counter(rows.labels.tolist()).values()) / len(rows)
    return others * min(sizes) >= 3


def _check_enough(source: _Source) -> None:
    needed, has = sum(source.sizes.values()), len(source.rows)
    if has < needed:
        lower = "them" if len(source.sizes) > 1 else "it"
        raise W2SError(
            f"{source.name} has {has} rows{source.left_out}, but {' + '.join(source.sizes)} = "
            f"{needed}; lower {lower} or add {'other ' if source.left_out else ''}rows"
        )


def _join(first: Sequence[str], second: Sequence[str | None]) -> list[str]:
    """Return for each row the name of its connected set: rows that share a key of either column."""
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(key: tuple[int, str]) -> tuple[int, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for one, two in zip(first, second, strict=True):
        if two is not None:
            low, high = sorted((root((0, one)), root((1, two))))
            parent[high] = low  # the smallest key names the set, for any order of the rows
    return [root((0, one))[1] for one in first]


def _digest(*parts: str) -> str:
    joined = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=10).hexdigest()


def squeeze(text: str) -> str:
    """Return the text without case and runs of white space, which do not make texts different."""
    return " ".join(text.split()).casefold()
