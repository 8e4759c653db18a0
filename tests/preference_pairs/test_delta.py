"""Delta pairs: which text is which side, and what becomes of every item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.preference_pairs import chosen_rows, delta_pairs, reversed_pairs
from w2s_fast.reasoning import check_pairs, write_rows
from w2s_fast.sampling import FileSampler, write_samples
from w2s_fast.tasks import TaskConfig, get_task


@pytest.mark.parametrize(
    ("stronger", "weaker", "expected"),
    [
        ("a fox", "a fx", "paired"),
        ("a fox", " a fox\n", "equal_texts"),
        ("a fox", "A fox", "paired"),
        (" \n", "a fox", "blank_stronger"),
        ("a fox", "", "blank_weaker"),
        ("", " ", "blank_both"),
    ],
)
def test_outcomes(stronger: str, weaker: str, expected: str) -> None:
    got = delta_pairs(["i"], ["p"], [stronger], [weaker])
    assert [name for name, ids in vars(got.report).items() if ids] == [expected]
    assert getattr(got.report, expected) == ("i",)
    assert len(got.rows) == (expected == "paired")


def test_rows_and_report() -> None:
    got = delta_pairs(
        [1, "b", 3, 4],
        ["p1 ", "p2", "p3", "p4"],
        ["good", " fine ", "", "x"],
        ["bad", "ok", "y", "x"],
    )
    assert got.rows == (
        {"id": 1, "prompt": "p1 ", "chosen": "good", "rejected": "bad"},
        {"id": "b", "prompt": "p2", "chosen": " fine", "rejected": " ok"},
    )
    assert str(got.report) == (
        "4 items: 2 paired, 1 equal_texts, 1 blank_stronger, 0 blank_weaker, 0 blank_both"
    )
    assert reversed_pairs(got.rows)[1] == {
        "id": "b", "prompt": "p2", "chosen": " ok", "rejected": " fine"
    }  # fmt: skip
    assert reversed_pairs(reversed_pairs(got.rows)) == got.rows
    assert chosen_rows(got.rows) == (
        {"id": 1, "prompt": "p1 ", "answer": "good"},
        {"id": "b", "prompt": "p2", "answer": " fine"},
    )


texts = st.sampled_from(["", " ", "a", " a", "b", "b\n", "ab"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_every_item_is_named_once_and_no_pair_has_a_fault(sides: list[tuple[str, str]]) -> None:
    ids = list(range(len(sides)))
    stronger, weaker = map(list, zip(*sides, strict=True))
    got = delta_pairs(ids, ["p"] * len(ids), stronger, weaker)
    assert sorted(i for group in vars(got.report).values() for i in group) == ids
    assert tuple(row["id"] for row in got.rows) == got.report.paired
    if got.rows:
        columns = ([row[key] for row in got.rows] for key in ("id", "chosen", "rejected"))
        faults = check_pairs(*columns, read="marked", rule="string")
        assert not faults.equal_texts and not faults.empty


def test_two_samplers_and_the_task_pairs(tmp_path: Path) -> None:
    """The rows of two samplers are a data file of the task for pairs."""
    prompts = [f"Question {i}?" for i in range(12)]
    for name in ("large", "small"):
        write_samples(tmp_path / f"{name}.jsonl", prompts, [[f"{name} {p}"] for p in prompts])
    large, small = (
        [t for (t,) in FileSampler(tmp_path / f"{name}.jsonl").sample(prompts, 1)]
        for name in ("large", "small")
    )
    path = tmp_path / "pairs.jsonl"
    write_rows(path, delta_pairs(prompts, prompts, large, small).rows)
    cfg = TaskConfig(name="pairs", path=str(path), n_weak=4, n_transfer=4, n_test=4, balance=False)
    data = get_task("pairs").load(cfg, seed=0)
    sides = [*data.weak.texts, *(data.weak.pairs or ())]
    assert sum("large" in text for text in sides) == sum("small" in text for text in sides) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["i", "i"], ["p"] * 2, ["a"] * 2, ["b"] * 2), "'i' occurs 2 times"),
        ((["i"], ["p"], ["a", "b"], ["b"]), "stronger: 2 texts for 1 ids"),
        ((["i"], ["p"], ["a"], "b"), "weaker: one text for 1 ids"),
        ((["i"], ["p"], ["a"], [None]), r"weaker\[0\] is None"),
        (([], [], [], []), "ids are empty"),
    ],
)
def test_input_errors(arguments: Any, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        delta_pairs(*arguments)


def test_rows_without_a_side() -> None:
    rows = [{"id": 1, "prompt": "p", "chosen": "a", "rejected": "b"}, {"id": 2, "prompt": "p"}]
    with pytest.raises(W2SError, match="row 1 has the keys 'id', 'prompt'; expected also 'chosen'"):
        reversed_pairs(rows)
    with pytest.raises(W2SError, match="expected also 'chosen'"):
        chosen_rows(rows)
    with pytest.raises(W2SError, match="expected also 'rejected'"):
        reversed_pairs([{"chosen": "a"}])
