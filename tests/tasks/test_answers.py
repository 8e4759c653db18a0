"""Tasks of answers: what is read out of a text, local files, GSM8K, and no class to balance."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.task_data import (
    HUB_TASKS,
    SMALL,
    all_columns,
    check_schema,
    fails,
    local_config,
    many_like,
    write_rows,
)

from w2s_fast.tasks import TaskConfig, get_task
from w2s_fast.tasks._answer_parsing import READERS, after
from w2s_fast.tasks._split import make_examples, split_pool
from w2s_fast.tasks.datasets import gsm8k

# What stands in a text -> the number that is read.
NUMBERS = {
    "She has 3 + 4 = 7.\n#### 7": "7",
    "#### 1,500": "1500",
    "#### $1,500.00 in all": "1500",
    "#### -2": "-2",
    "#### +4": "4",
    "10 - 3 = 7 #### 7 because 12 - 5 = 7 too, not 9": "7",
    "so it is 18": "18",
    "The answer is $15.": "15",
    "16-7=9": "9",
    "12-3": "3",  # a subtraction, not minus three
    "x = -7.50": "-7.5",
    "half of it is .5": "0.5",
    "about 3.0": "3",
    "-0": "0",
    "007": "7",
    "1, 2, 3": "3",
    "2e-5": "0.00002",
    "1E+16 atoms": "10000000000000000",
    "#### -2.50e3": "-2500",
    "2 eggs": "2",
    "0e99": "0",
    "#### \u22125": "-5",
    "12\u22123": "3",
    "x = \u2011$7": "-7",
    "pages 3\u20135": "5",  # a dash is no minus
    "1e400": "1" + "0" * 400,
    "1e999999999": "1E+999999999",
    "10e999999998": "1E+999999999",
    "1e-999999999": "1E-999999999",
    "1e" + "9" * 5000: "",
    "18 apples ####": "18",
    "The answer is H2O.": "",
    "no idea": "",
    "####": "",
    "": "",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_the_number_that_is_read(text: str) -> None:
    assert READERS["number"](text) == NUMBERS[text]
    assert READERS["number"](NUMBERS[text]) == NUMBERS[text]  # reading twice changes nothing


def test_other_readers() -> None:
    assert READERS["text"]("  a\nb \n") == "a\nb"
    assert READERS["line"]("a\n b \n\n") == "b"
    assert READERS["text"](" \n") == READERS["line"]("\n ") == ""


def test_an_answer_brings_the_space_before_it() -> None:
    assert after("Why?", "Because. ") == " Because."
    assert after("Why?", " Because.") == " Because."
    assert after("Why? ", "Because.") == "Because."
    assert after("<assistant>\n", "Because.") == "Because."


def test_gsm8k_gold_and_generations(tmp_path: Path) -> None:
    task = HUB_TASKS["gsm8k"]
    made = task.examples(task.samples, 0)
    assert made.answers is not None
    assert made.answers[1] == " He has saved 6 * 250 = $1500.\n#### 1,500"
    assert [gsm8k.read(a) for a in made.answers] == ["48", "1500", "7", "-2", "10"]
    assert gsm8k.read(" It is 4.\n#### 4\n\nQuestion: How old are 9 cats?") == "4"
    assert gsm8k.read(" It is 4.\nQuestion: How old are 9 cats?") == "4"
    for split, n in (("train", 60), ("test", 30)):
        write_rows(tmp_path / f"{split}.jsonl", many_like(task, n, split))
    data = task.load(TaskConfig(name="gsm8k", path=str(tmp_path), **SMALL), 0)
    assert (data.kind, data.class_names, data.prompt) == (
        "generation",
        ("wrong", "right"),
        "{text}",
    )
    assert all(t.startswith("Question: ") and t.endswith("\nAnswer:") for t in data.test.texts)


def test_no_answer_matches_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "answer": f"It is {i}."} for i in range(60)]
    cfg = _config(write_rows(tmp_path / "a.jsonl", rows), read="number")
    data = get_task("local_answers").load(cfg, 0)
    assert data.agree("It is 1,000.", "#### 1000")
    assert not data.agree("It is 4.", "It is 5.")
    assert not data.agree("who knows", "who knows")


def _config(path: Path, **options: object) -> TaskConfig:
    return replace(local_config(path), name="local_answers", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cells", "written"),
    [
        ([2e-5], "0.00002"),
        ([1e16], "10000000000000000"),
        ([-1.5e-7], "-0.00000015"),
        ([0.1], "0.1"),
        ([Decimal("0.0000002")], "0.0000002"),
        ([Decimal("0.0000000")], "0.0000000"),
    ],
)
def test_answers_in_a_column_of_numbers(tmp_path: Path, cells: list[object], written: str) -> None:
    """Python spells them with an exponent, as no model that answers does."""
    path = tmp_path / "a.parquet"
    prompts = [f"Ask {i}" for i in range(60)]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts, "answer": cells * 60}), path)
    data = get_task("local_answers").load(_config(path, read="number"), 0)
    assert set(data.test.answers or ()) == {f" {written}"}
    assert data.agree(f"It is {written}.", data.test.answers[0])  # type: ignore[index]
    assert not data.agree("It is 5.", data.test.answers[0])  # type: ignore[index]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_local_answers(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"Ask {i // 2}: ", "answer": f"reply {i}"} for i in range(80)]
    cfg = _config(write_rows(tmp_path / f"a{suffix}", rows))
    data = get_task("local_answers").load(cfg, 0)
    check_schema(data, cfg)
    assert all_columns(data) == all_columns(get_task("local_answers").load(cfg, 0))
    gold = {(row["prompt"], row["answer"]) for row in rows}
    for part in (data.weak, data.transfer, data.test):
        assert part.answers is not None
        assert set(zip(part.texts, part.answers, strict=True)) <= gold
        assert len(set(part.ids)) == len(part)  # two answers to one prompt are two rows


def test_local_answers_with_other_names_groups_and_a_test_file(tmp_path: Path) -> None:
    def rows(first: int, n: int) -> list[dict[str, object]]:
        return [{"q": f"q {i}", "a": i, "book": f"b{i // 4}"} for i in range(first, first + n)]

    train = write_rows(tmp_path / "train.jsonl", rows(0, 60))
    test = write_rows(tmp_path / "test.jsonl", rows(58, 20))
    cfg = _config(train, test_path=str(test), text="q", label="a", group="book", read="number")
    data = get_task("local_answers").load(cfg, 0)
    check_schema(data, cfg)
    used = {int(text.split()[1]) for text in data.weak.texts + data.transfer.texts}
    assert max(used) < 56  # book 14 is in both files


def test_answers_have_no_classes_to_balance() -> None:
    texts = [f"t {i}" for i in range(60)]
    pool = make_examples(texts, [0] * 60, answers=[f"a {i}" for i in range(60)])
    cfg = TaskConfig(name="local_answers", **SMALL)
    data = split_pool(pool, None, ("wrong", "right"), cfg, 0, "data")
    assert data.kind == "generation"
    one, two = data.weak.cut(3)
    assert one.answers == data.weak.answers[:3] and len(two) == 5  # type: ignore[index]
    same = make_examples(texts, [0] * 60, None, ["g"] * 60, ["a"] * 60)
    fails(lambda: split_pool(same, None, ("wrong", "right"), cfg, 0, "data"), "groups stay whole")
    other = make_examples(["t", "t"], [0, 0], answers=["a", "b"])
    # ids differ, and do not tell the gold
    assert other.ids[1] == f"{other.ids[0]}-2" and other.groups[0] == other.groups[1]


def test_answers_that_do_not_fit(tmp_path: Path) -> None:
    load = get_task("local_answers").load
    fails(lambda: load(TaskConfig(name="local_answers"), 0), "task.path is not set")
    rows = [{"prompt": f"p {i}", "answer": f"It is {i}."} for i in range(60)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    fails(lambda: load(_config(path, read="lines"), 0), "task.read='lines'", "'line'")
    fails(lambda: load(_config(path, label="answers"), 0), "no column 'answers'", "'answer'?")
    rows[3]["answer"] = "unknown"
    path = write_rows(tmp_path / "b.jsonl", rows)
    load(_config(path), 0)
    fails(
        lambda: load(_config(path, read="number"), 0),
        "no answer is found in 'unknown', row 4", "task.read",
    )  # fmt: skip
