"""Rows to splits: ids, groups of related rows, and the balanced draw."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from helpers.task_data import SMALL, fails
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.tasks import Examples, TaskConfig
from w2s_fast.tasks._split import make_examples, split_pool


def test_groups_join_through_equal_texts() -> None:
    examples = make_examples(["a", "b", "B ", "c"], [0, 0, 1, 1], groups=["x", "x", "y", None])
    assert len(set(examples.groups[:3])) == 1
    assert examples.groups[3] != examples.groups[0]


def test_ids_do_not_depend_on_the_order_of_rows() -> None:
    one = make_examples(["a", "b", "a"], [0, 1, 0])
    two = make_examples(["b", "a", "a"], [1, 0, 0])
    assert set(one.ids) == set(two.ids)
    assert len(set(one.ids)) == 3


def test_rows_of_one_group_are_not_drawn_in_a_run() -> None:
    groups = [f"g{i // 20}" for i in range(400)]
    pool = make_examples([f"t {i}" for i in range(400)], [i % 2 for i in range(400)], None, groups)
    cfg = TaskConfig(name="local", n_weak=100, n_transfer=100, n_test=100)
    names = split_pool(pool, None, ("a", "b"), cfg, 0, "data").transfer.groups
    assert sum(one == two for one, two in itertools.pairwise(names)) < 40  # 19 expected, 95 in runs


def test_large_groups_wait_for_a_split_with_room() -> None:
    sizes = [40, *[2] * 30]
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    labels = [i % 2 for i in range(len(groups))]
    pool = make_examples([f"t {i}" for i in range(len(groups))], labels, None, groups)
    cfg = TaskConfig(name="local", n_weak=20, n_transfer=60, n_test=20)
    for seed in range(20):  # 100 rows of 100: cutting the large group once would be one row short
        data = split_pool(pool, None, ("a", "b"), cfg, seed, "data")
        assert pool.groups[0] in data.transfer.groups


def test_the_smallest_group_is_cut_where_none_fits() -> None:
    sizes = [60, 8, 10, 12]
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    labels = [i % 2 for i in range(len(groups))]
    pool = make_examples([f"t {i}" for i in range(len(groups))], labels, None, groups)
    cfg = TaskConfig(name="local", n_weak=4, n_transfer=6, n_test=4)
    for seed in range(20):
        data = split_pool(pool, None, ("a", "b"), cfg, seed, "data")
        assert set(data.test.groups) == {pool.groups[60]}
        assert set(data.weak.groups) == {pool.groups[68]}


@pytest.mark.parametrize(("balance", "n_classes"), [(True, 2), (False, 2), (True, 1)])
def test_rows_that_the_test_file_has_too(balance: bool, n_classes: int) -> None:
    """They are left out, and a message that lacks rows says so."""
    answers = None if n_classes > 1 else ["a"] * 90
    pool = make_examples([f"t {i}" for i in range(90)], [i % n_classes for i in range(90)],
                         answers=answers)  # fmt: skip
    names = ("a", "b")
    cfg = TaskConfig(name="local", balance=balance, **SMALL)
    words = (
        "train.csv has 0 rows without the 90 of 90 that are left out because test.csv has their",
        "but task.n_weak + task.n_transfer = 20; lower them or add other rows",
    )
    fails(lambda: split_pool(pool, pool, names, cfg, 0, "train.csv", "test.csv"), *words)
    same = pool.take(range(75))
    fails(lambda: split_pool(pool, same, names, cfg, 0, "a", "b"), "a has 15 rows without the 75 ")
    split_pool(pool, pool.take(range(70)), names, cfg, 0, "a", "b")


def test_the_advice_about_balance_counts_the_rows_that_are_left() -> None:
    """Rows that the test file has too cannot be drawn, balanced or not."""
    pool = make_examples([f"t {i}" for i in range(82)], [int(i >= 60) for i in range(82)])
    cfg = TaskConfig(name="local", n_weak=14, n_transfer=12, n_test=12)
    for first, advised in ((72, True), (76, False)):  # 10 or 6 rows of the second class are left
        tests = pool.take([*range(30), *range(60, first)])
        message = _message(pool, ("a", "b"), cfg, 0, tests)
        assert f"of class 'b' short without the {len(tests)} of 82 that are left out" in message
        assert message.endswith("or set task.balance=false") == advised


def test_draw_of_one_class_only() -> None:
    pool = make_examples([f"t {i}" for i in range(1000)], [int(i == 0) for i in range(1000)])
    cfg = TaskConfig(name="local", balance=False, **SMALL)
    fails(lambda: split_pool(pool, None, ("a", "b"), cfg, 0, "data"), "of class 'a'")


@settings(deadline=None, max_examples=300)
@given(
    counts=st.tuples(st.integers(1, 200), st.integers(1, 60), st.integers(0, 60)),
    sizes=st.tuples(*[st.integers(2, 40)] * 3),
    seed=st.integers(0, 9),
    balance=st.booleans(),
    tested=st.floats(0, 1),
)
@example((60, 30, 0), (20, 20, 20), 0, True, 1.0)
def test_the_advice_about_balance_is_no_circle(
    counts: tuple[int, ...], sizes: tuple[int, ...], seed: int, balance: bool, tested: float
) -> None:
    """Whoever follows it does not get the opposite advice; with a file of test rows too."""
    labels = [c for c, n in enumerate(counts) for _ in range(n)]
    pool = make_examples([f"t {i}" for i in range(len(labels))], labels)
    rows = [i for i in range(len(labels)) if i * 7 % len(labels) < tested * len(labels)]
    test_pool = pool.take(rows) if rows else None
    names = ("a", "b", "c")[: max(labels) + 1] if max(labels) else ("a", "b")
    fields = dict(zip(("n_weak", "n_transfer", "n_test"), sizes, strict=True))
    cfg = TaskConfig(name="local", balance=balance, **fields)
    first = _message(pool, names, cfg, seed, test_pool)
    advice = f"set task.balance={str(not balance).lower()}"
    assert f"task.balance={str(balance).lower()}" not in first
    if advice in first:
        other = dataclasses.replace(cfg, balance=not balance)
        second = _message(pool, names, other, seed, test_pool)
        assert f"task.balance={str(balance).lower()}" not in second


def _message(
    pool: Examples, names: tuple[str, ...], cfg: TaskConfig, seed: int, tests: Examples | None
) -> str:
    try:
        split_pool(pool, tests, names, cfg, seed, "data", "tests")
    except W2SError as err:
        return str(err)
    return ""
