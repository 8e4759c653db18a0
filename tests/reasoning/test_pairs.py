"""Stage II: which side the weak solution is, at which confidence, and what becomes of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.reasoning import check_pairs, contrastive_pairs, write_rows
from w2s_fast.reasoning.pairs import OUTCOMES
from w2s_fast.tasks import TaskConfig, get_task


def solutions(answers: str) -> list[str]:
    """One sample a character, each another text; "-" has no answer."""
    return [f"way {i}" + ("" if a == "-" else f"\n#### {a}") for i, a in enumerate(answers)]


def outcome(weak: str, answers: str, **options: Any) -> tuple[str, tuple[dict[str, Any], ...]]:
    options = {"rule": "number", **options}
    got = contrastive_pairs(["i"], ["p"], [weak], [solutions(answers)], **options)
    (name,) = [name for name in OUTCOMES if getattr(got.report, name)]
    return name, got.rows


@pytest.mark.parametrize(
    ("weak", "answers", "expected"),
    [
        ("w\n#### 7", "7777771234", "weak_chosen"),
        ("w\n#### 7.0", "777777----", "weak_chosen"),
        ("w\n#### 7", "7777712345", "low_confidence"),  # 5 of 10
        ("w\n#### 7", "77777-----", "low_confidence"),  # samples without an answer are samples
        ("w\n#### 7", "7777777777", "unanimous"),
        ("w\n#### 5", "7777777712", "weak_rejected"),
        ("w", "7777777712", "weak_rejected"),  # no readable answer is not the majority's
        ("w\n#### 5", "7777777123", "below_override"),  # 7 of 10
        ("w\n#### 5", "----------", "no_answer"),
        (" ", "7777777777", "weak_empty"),
    ],
)
def test_outcomes(weak: str, answers: str, expected: str) -> None:
    name, rows = outcome(weak, answers)
    assert name == expected
    assert len(rows) == (expected in ("weak_chosen", "weak_rejected"))
    if expected == "weak_chosen":
        assert rows[0]["chosen"] == f" {weak}" and "#### 7" not in rows[0]["rejected"]
    if expected == "weak_rejected":
        assert rows[0]["rejected"] == f" {weak}" and rows[0]["chosen"].endswith("#### 7")


def test_thresholds_are_options() -> None:
    assert outcome("#### 7", "7777712345", confidence=0.5)[0] == "weak_chosen"
    assert outcome("#### 7", "7777771234", confidence=0.7)[0] == "low_confidence"
    assert outcome("#### 5", "7777777123", override_confidence=0.7)[0] == "weak_rejected"


def test_unreadable_sides_are_counted() -> None:
    got = contrastive_pairs(
        [1, 2, 3], ["p"] * 3, ["#### 7", "w", "#### 7"],
        [solutions("777777----"), solutions("77777777--"), solutions("7777771111")], rule="number",
    )  # fmt: skip
    report = got.report
    assert report.weak_chosen == (1, 3) and report.weak_rejected == (2,)
    assert report.unreadable_rejected == (1, 2) and report.n_unreadable_samples == 6
    assert str(report).startswith("3 items: 2 weak_chosen, 1 weak_rejected, 0 no_answer, 0 low")
    assert str(report).endswith("2 rejected sides and 6 samples without a readable answer")


def test_no_pair_has_equal_answers_by_a_rule_that_is_not_transitive() -> None:
    """The majority is 75; 0.75 differs from it, and both equal the weak 75 %."""
    pytest.importorskip("math_verify")
    samples = ["#### 75"] * 6 + ["#### 0.75"] * 4
    got = contrastive_pairs(["i"], ["p"], ["#### 75%"], [samples])
    assert got.report.equal_sides == ("i",) and not got.rows
    got = contrastive_pairs(["i"], ["p"], ["#### 75%"], [[*samples[:8], "#### 1", "#### 2"]])
    assert got.report.weak_chosen == ("i",)
    assert got.rows[0]["rejected"] in (" #### 1", " #### 2")


ITEMS = st.lists(
    st.tuples(st.sampled_from(["1", "2", "-"]), st.text("12-", min_size=1, max_size=10)),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(ITEMS, st.integers(0, 3), st.randoms())
def test_pairs_are_contrasts_and_items_are_counted(
    items: list[tuple[str, str]], seed: int, rng: Any
) -> None:
    ids = list(range(len(items)))
    weak = [solutions(w)[0] + " by the weak model" * (w == "-") for w, _ in items]
    samples = [solutions(s) for _, s in items]
    prompts = [f"q{i}" for i in ids]
    got = contrastive_pairs(ids, prompts, weak, samples, seed=seed, rule="number")
    names = [i for name in OUTCOMES for i in getattr(got.report, name)]
    assert sorted(names) == ids
    assert len(got.rows) == len(got.report.weak_chosen) + len(got.report.weak_rejected)
    for row in got.rows:
        i = row["id"]
        assert f" {weak[i]}" in (row["chosen"], row["rejected"])
        other = row["rejected"] if i in got.report.weak_chosen else row["chosen"]
        assert other.removeprefix(" ") in samples[i]
    columns = ([row[k] for row in got.rows] for k in ("id", "chosen", "rejected"))
    if got.rows:
        check = check_pairs(*columns, rule="number")
        assert not check.equal_texts and not check.equal_answers and not check.empty
        assert not check.unreadable_chosen
        assert check.unreadable_rejected == got.report.unreadable_rejected
    order = ids[:]
    rng.shuffle(order)
    columns = [[column[i] for i in order] for column in (prompts, weak, samples)]
    again = contrastive_pairs(order, *columns, seed=seed, rule="number")
    assert sorted(again.rows, key=lambda r: r["id"]) == list(got.rows), "pairs know only their item"


def test_the_seed_draws_the_sample() -> None:
    drawn = {outcome("#### 7", "7777771234", seed=seed)[1][0]["rejected"] for seed in range(40)}
    assert drawn == {f" {text}" for text in solutions("7777771234")[6:]}


def test_a_task_reads_the_rows(tmp_path: Path) -> None:
    ids = list(range(60))
    prompts = [f"Question: {i}?\nAnswer:" for i in ids]
    samples = [[" right\n#### 7"] * 8 + [" wrong\n#### 1"] * 2] * 60
    got = contrastive_pairs(ids, prompts, ["weak\n#### 5"] * 60, samples, rule="number")
    write_rows(tmp_path / "pairs.jsonl", got.rows)
    cfg = TaskConfig(
        name="pairs",
        path=str(tmp_path / "pairs.jsonl"),
        n_weak=8,
        n_transfer=8,
        n_test=8,
    )
    data = get_task("pairs").load(cfg, 0)
    split = data.transfer
    assert split.pairs is not None and len(split.texts) == 8
    for text, pair, label in zip(split.texts, split.pairs, split.labels, strict=True):
        better, worse = (pair, text) if label else (text, pair)
        assert better.endswith("?\nAnswer: right\n#### 7"), "one space separates either answer"
        assert worse.endswith("?\nAnswer: weak\n#### 5")


def test_faults_of_given_pairs() -> None:
    got = check_pairs(
        [1, 2, 3, 4, 5],
        ["#### 1", "#### 7.50", "#### 2", "3", "#### 4"],
        ["#### 1 ", "so #### 7.5", "", "#### 4", "#### 5"],
        rule="number",
    )
    assert got.n == 5 and got.equal_texts == (1,) and got.equal_answers == (1, 2)
    assert got.empty == (3,) and got.unreadable_rejected == (3,) and got.unreadable_chosen == (4,)
    assert got.undecided == ()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"samples": [["#### 1"]]}, "samples: 1 lists for 2 ids"),
        ({"samples": [["#### 1"], []]}, r"samples of id 'b' are \[\]; expected a list of at least"),
        ({"samples": [["#### 1"], "#### 1"]}, "samples of id 'b' are '#### 1'; expected a list"),
        ({"samples": [["#### 1"], [None]]}, r"samples of id 'b' are \[None\]"),
        ({"confidence": 0.9}, "confidence is 0.9, override_confidence 0.8; expected 0 < conf"),
        ({"confidence": 0}, "confidence is 0, "),
        ({"override_confidence": 1.5}, "override_confidence 1.5"),
        ({"ids": ["a", "a"]}, "id 'a' occurs 2 times"),
        ({"weak": [1, "x"]}, r"weak\[0\] is 1 \(id 'a'\)"),
        ({"rule": "x"}, "rule is 'x'"),
        ({"read": "x"}, "read is 'x'"),
    ],
)
def test_wrong_values(changes: dict[str, Any], problem: str) -> None:
    values: dict[str, Any] = {
        "ids": ["a", "b"], "prompts": ["p", "q"], "weak": ["#### 1"] * 2,
        "samples": [["#### 1"]] * 2, "rule": "number",
    }  # fmt: skip
    with pytest.raises(W2SError, match=problem):
        contrastive_pairs(**values | changes)
