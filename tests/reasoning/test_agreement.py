"""Stage I: which items are kept, that no item is lost, and rows that a task reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.reasoning import next_iteration, select_agreeing, write_rows
from w2s_fast.sampling import FileSampler, write_samples
from w2s_fast.tasks import TaskConfig, get_task

IDS = ["a", "b", "c", "d", "e", "f"]
PROMPTS = [f"Question: {i}?\nAnswer:" for i in IDS]
WEAK = ["x\n#### 1,000", "#### 2", "", "no mark 4", "#### 5", "#### six"]
STRONG = ["y\n#### 1000.0", "#### 3", "#### 3", "no mark 4", "", "#### six"]
SOLUTIONS = st.sampled_from(["", " ", "#### 1", "#### 1.0", "#### 2", "1", "#### one"])


def test_known_items() -> None:
    got = select_agreeing(IDS, PROMPTS, WEAK, STRONG, rule="number")
    report = got.report
    assert report.kept == ("a",) and report.different == ("b",)
    assert report.empty == ("c", "e") and report.unreadable == ("d", "f")
    assert report.undecided == ()
    assert str(report) == "6 items: 1 kept, 1 different, 2 empty, 2 unreadable, 0 undecided"
    assert got.weak == ({"id": "a", "prompt": PROMPTS[0], "answer": " x\n#### 1,000"},)
    assert got.in_context == ({"id": "a", "prompt": PROMPTS[0], "answer": " y\n#### 1000.0"},)
    assert got.hybrid == got.weak + got.in_context
    as_strings = select_agreeing(IDS, PROMPTS, WEAK, STRONG, rule="string").report
    assert as_strings.kept == ("f",) and as_strings.different == ("a", "b")
    whole = select_agreeing(IDS, PROMPTS, WEAK, STRONG, rule="number", read="number").report
    assert whole.kept == ("a", "d")


@settings(deadline=None)
@given(st.lists(st.tuples(SOLUTIONS, SOLUTIONS), min_size=1, max_size=12), st.randoms())
def test_every_item_is_counted_once(pairs: list[tuple[str, str]], rng: Any) -> None:
    ids = list(range(len(pairs)))
    weak, strong = ([p[k] for p in pairs] for k in (0, 1))
    prompts = [f"q{i}" for i in ids]
    got = select_agreeing(ids, prompts, weak, strong, rule="number")
    groups = vars(got.report)
    assert sorted(i for group in groups.values() for i in group) == ids
    assert [row["id"] for row in got.weak] == [row["id"] for row in got.in_context]
    assert tuple(row["id"] for row in got.weak) == got.report.kept
    rows = Counter(tuple(row.items()) for row in got.hybrid)
    assert rows == Counter(tuple(r.items()) for r in [*got.weak, *got.in_context])
    swapped = select_agreeing(ids, prompts, strong, weak, rule="number")
    assert swapped.report == got.report and swapped.weak == got.in_context
    order = ids[:]
    rng.shuffle(order)
    shuffled = select_agreeing(
        order, *([c[i] for i in order] for c in (prompts, weak, strong)), rule="number"
    )
    assert {k: sorted(v) for k, v in vars(shuffled.report).items()} == {
        k: sorted(v) for k, v in groups.items()
    }


def test_equal_rows_stay_two_rows() -> None:
    got = select_agreeing(["a"], ["q"], ["#### 1"], ["#### 1"], rule="string")
    assert len(got.hybrid) == 2 and got.hybrid[0] == got.hybrid[1]


def test_next_iteration_samples_both_students(tmp_path: Path) -> None:
    prompts = ["p", "q", "r"]
    for name, answers in (("weak", "123"), ("strong", "193")):
        samples = [[f"#### {a}", "#### 0"] for a in answers]
        write_samples(tmp_path / f"{name}.jsonl", prompts, samples)
    students = (FileSampler(tmp_path / f"{name}.jsonl") for name in ("weak", "strong"))
    got = next_iteration([1, 2, 3], prompts, *students, rule="number")
    assert got.report.kept == (1, 3) and got.report.different == (2,)
    assert [row["answer"] for row in got.weak] == [" #### 1", " #### 3"]


def test_a_task_reads_the_rows(tmp_path: Path) -> None:
    ids = list(range(9))
    prompts = [f"Question: {i}?\nAnswer:" for i in ids]
    texts = [f"so\n#### {i}" for i in ids]
    got = select_agreeing(ids, prompts, texts, texts, rule="number")
    path = tmp_path / "weak.jsonl"
    write_rows(path, got.weak)
    cfg = TaskConfig(
        name="local_answers", path=str(path), read="number", n_weak=3, n_transfer=3, n_test=3
    )
    data = get_task("local_answers").load(cfg, 0)
    split = data.transfer
    assert sorted(data.weak.texts + split.texts + data.test.texts) == prompts
    assert split.answers == tuple(f" so\n#### {p[10]}" for p in split.texts)
    with pytest.raises(W2SError, match="no rows for .*: see the report of the selection"):
        write_rows(tmp_path / "none.jsonl", ())
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ids": []}, "ids are empty"),
        ({"ids": ["a", "a"]}, "id 'a' occurs 2 times; expected one row per item"),
        ({"weak": ["#### 1"]}, "weak: 1 texts for 2 ids; expected one text per id"),
        ({"prompts": "pq"}, "prompts: one text for 2 ids"),
        ({"in_context": ["#### 1", None]}, r"in_context\[1\] is None \(id 'b'\); expected a text"),
        ({"rule": "maths"}, "rule is 'maths'; expected one of .* did you mean 'math'"),
        ({"read": "last"}, "read is 'last'; expected a function or one of"),
    ],
)
def test_wrong_values(changes: dict[str, Any], problem: str) -> None:
    values: dict[str, Any] = {
        "ids": ["a", "b"], "prompts": ["p", "q"], "weak": ["#### 1"] * 2,
        "in_context": ["#### 1"] * 2, "rule": "number",
    }  # fmt: skip
    with pytest.raises(W2SError, match=problem):
        select_agreeing(**values | changes)
