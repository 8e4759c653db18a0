"""Preferences: both dialogues are shown, the coin decides the order, one prompt is one split."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.task_data import HUB_TASKS, all_columns, check_schema, fails, local_config, write_rows

from w2s_fast.tasks import TaskConfig, TaskData, get_task
from w2s_fast.tasks._pairs import joined


def _rows(n: int) -> list[dict[str, object]]:
    """n pairs; three of them share a prompt."""
    return [
        {"prompt": f"Ask {i // 3}?", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(n)
    ]


def _config(path: Path, **options: object) -> TaskConfig:
    return replace(local_config(path), name="pairs", **options)  # type: ignore[arg-type]


def _check_order(data: TaskData) -> None:
    """The better text is the second one exactly where the class is 1, and both orders occur."""
    for part in (data.weak, data.transfer, data.test):
        assert part.pairs is not None and set(part.labels.tolist()) == {0, 1}
        for text, pair, label in zip(part.texts, part.pairs, part.labels, strict=True):
            assert ("good" in pair, "good" in text) == (bool(label), not label)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_pairs_with_prompts(tmp_path: Path, suffix: str) -> None:
    cfg = _config(write_rows(tmp_path / f"a{suffix}", _rows(60)))
    data = get_task("pairs").load(cfg, 0)
    check_schema(data, cfg)
    _check_order(data)
    assert (data.kind, data.class_names) == ("preference", ("first", "second"))
    assert data.words == (" first", " second")
    assert all_columns(data) == all_columns(get_task("pairs").load(cfg, 0))
    prompts = [{text.split("\n")[0] for text in p.texts} for p in (data.weak, data.transfer)]
    assert all(p <= {f"Ask {i}?" for i in range(20)} for p in prompts)
    assert not prompts[0] & prompts[1]


def test_the_coin_is_the_rows_own(tmp_path: Path) -> None:
    """A row keeps its order whatever stands around it, and another seed gives another order."""
    rows = _rows(60)
    one, two = (
        get_task("pairs").load(_config(write_rows(tmp_path / f"{k}.jsonl", part)), 0)
        for k, part in enumerate((rows, rows[::-1]))
    )
    golds = [
        {i: label for p in (d.weak, d.transfer, d.test) for i, label in zip(p.texts, p.labels)}  # noqa: B905
        for d in (one, two)
    ]
    shared = set(golds[0]) & set(golds[1])
    assert len(shared) > 10 and all(golds[0][i] == golds[1][i] for i in shared)
    other = get_task("pairs").load(_config(tmp_path / "0.jsonl"), 1)
    assert set(other.weak.texts + other.test.texts) != set(one.weak.texts + one.test.texts)


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "test file"])
@pytest.mark.parametrize("again", ["reversed", "upper case", "both"])
def test_a_pair_that_is_judged_twice_is_in_one_split(
    tmp_path: Path, again: str, apart: bool
) -> None:
    """Whatever order the coin of each row gives its two texts."""
    rows: list[dict[str, object]] = [
        {"chosen": f"answer {i} good", "rejected": f"answer {i} poor"} for i in range(80)
    ]
    twice = []
    for row in rows:
        texts = [str(text) for text in row.values()]
        texts = texts[::-1] if again != "upper case" else texts
        texts = [text.upper() for text in texts] if again != "reversed" else texts
        twice.append(dict(zip(row, texts, strict=True)))
    if apart:
        rows, twice = [*rows, *twice[:20]], twice[:20]
    cfg = _config(write_rows(tmp_path / "a.jsonl", rows if apart else [*rows, *twice]))
    if apart:
        cfg = replace(cfg, test_path=str(write_rows(tmp_path / "b.jsonl", twice)))
    data = get_task("pairs").load(cfg, 0)
    parts = []
    for part in (data.weak, data.transfer, data.test):
        assert part.pairs is not None
        both = zip(part.texts, part.pairs, strict=True)
        parts.append({frozenset(text.casefold() for text in two) for two in both})
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize("column", [True, False], ids=["prompt column", "dialogues"])
def test_prompts_that_differ_in_case_are_one(tmp_path: Path, column: bool) -> None:
    rows: list[dict[str, object]] = []
    for i in range(60):
        ask = f"Ask  {i // 2}?" if i % 2 else f"ask {i // 2}?"
        start = "" if column else f"\n\nHuman: {ask}\n\nAssistant: "
        answers = {"chosen": f"{start}good {i}", "rejected": f"{start}bad {i}"}
        rows.append({"prompt": ask, **answers} if column else {**answers})
    data = get_task("pairs").load(_config(write_rows(tmp_path / "a.jsonl", rows)), 0)
    asked = [
        {re.search(r"ask +(\d+)", text.lower())[1] for text in part.texts}  # type: ignore[index]
        for part in (data.weak, data.transfer, data.test)
    ]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])


def test_dialogues_without_a_prompt_column(tmp_path: Path) -> None:
    """As in single-turn HH files: the opening that both share is what relates them."""
    rows = [
        {key: f"\n\nHuman: ask {i // 3}\n\nAssistant: {word} {i}" for key, word in
         (("chosen", "good"), ("rejected", "bad"))}
        for i in range(60)
    ]  # fmt: skip
    cfg = _config(write_rows(tmp_path / "a.jsonl", rows))
    data = get_task("pairs").load(cfg, 0)
    check_schema(data, cfg)
    _check_order(data)
    owners = [{t.split("Assistant")[0] for t in p.texts} for p in (data.weak, data.transfer)]
    assert not owners[0] & owners[1]


def test_other_column_names_groups_and_a_test_file(tmp_path: Path) -> None:
    def rows(first: int, n: int) -> list[dict[str, object]]:
        return [
            {"q": f"q{i}", "a": f"good {i}", "b": f"bad {i}", "topic": f"t{i // 4}"}
            for i in range(first, first + n)
        ]

    train = write_rows(tmp_path / "train.csv", rows(0, 60))
    test = write_rows(tmp_path / "test.csv", rows(58, 20))
    options = {"text": "q", "chosen": "a", "rejected": "b", "group": "topic"}
    cfg = _config(train, test_path=str(test), **options)
    data = get_task("pairs").load(cfg, 0)
    check_schema(data, cfg)
    _check_order(data)
    used = {int(t.split()[-1]) for t in data.weak.texts + data.transfer.texts}
    assert max(used) < 56  # topic 14 has rows in both files


def test_equal_answers_decide_nothing(tmp_path: Path) -> None:
    rows = _rows(40) + [{"prompt": "p", "chosen": "same", "rejected": "same"}] * 40
    data = get_task("pairs").load(_config(write_rows(tmp_path / "a.jsonl", rows)), 0)
    assert not any("same" in t for t in data.weak.texts + data.transfer.texts + data.test.texts)
    hh = HUB_TASKS["hh_rlhf"]
    equal = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b"}
    assert len(hh.examples([equal, *hh.samples], 0)) == len(hh.samples)


def test_hh_shows_both_dialogues_and_keeps_openings_together() -> None:
    hh = HUB_TASKS["hh_rlhf"]
    seen = set()
    for seed in range(20):
        made = hh.examples(hh.samples, seed)
        assert made.pairs is not None
        for row, text, pair, label in zip(
            hh.samples, made.texts, made.pairs, made.labels, strict=True
        ):
            assert (row["chosen"], row["rejected"]) == ((pair, text) if label else (text, pair))
        seen.add(tuple(made.labels))
    assert len(seen) > 5
    longer = [{k: v + "\n\nHuman: Why?" for k, v in row.items()} for row in hh.samples]
    groups = hh.examples([*hh.samples, *longer], 0).groups
    assert groups[:5] == groups[5:] and len(set(groups)) == 5


def test_prompt_and_answer_are_joined_once() -> None:
    assert joined("Why?", "Because.") == "Why?\nBecause."
    assert joined("Why?\n", "Because.") == "Why?\nBecause."
    assert joined("Why?", " Because.") == "Why? Because."
    assert joined("Why?", "Why? Because.") == "Why? Because."


def test_pairs_that_do_not_fit(tmp_path: Path) -> None:
    load = get_task("pairs").load
    fails(lambda: load(TaskConfig(name="pairs"), 0), "task.path is not set", "'pairs'")
    path = write_rows(tmp_path / "a.jsonl", _rows(40))
    fails(
        lambda: load(_config(path, chosen="chose"), 0),
        "no column 'chose' (task.chosen)", "did you mean 'chosen'?",
    )  # fmt: skip
    fails(lambda: load(_config(path, text="question"), 0), "no column 'question' (task.text)")
    rows = _rows(40)
    rows[2]["rejected"] = None
    fails(
        lambda: load(_config(write_rows(tmp_path / "b.jsonl", rows)), 0),
        "column 'rejected' (task.rejected)", "the first is row 3",
    )  # fmt: skip
    turns = [{**row, "chosen": [{"role": "user", "content": "a"}]} for row in rows]
    bad = write_rows(tmp_path / "c.jsonl", turns)
    fails(lambda: load(_config(bad), 0), "(task.chosen) is a list", "as one string")
