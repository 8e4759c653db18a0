"""Majority votes: counts, ties, samples without an answer."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.reasoning import answer_classes, vote

ANSWERS = st.lists(st.sampled_from(["1", "1.0", "2", "3", "three", ""]), min_size=1, max_size=10)


def test_known_votes() -> None:
    got = vote(["#### 7", "8", "#### 7.0", "#### 9", "#### 9"], rule="number")
    assert got.answer == "7" and got.confidence == 0.4, "the first of equally frequent answers"
    assert got.agreeing == (0, 2) and got.disagreeing == (1, 3, 4) and got.unreadable == (1,)
    nine = vote(["#### 7", "#### 9", "#### 9"], rule="number")
    assert nine.answer == "9" and nine.confidence == 2 / 3
    none = vote(["7", ""], rule="number")
    assert none.answer == "" and none.confidence == 0 and none.agreeing == ()
    assert none.unreadable == none.disagreeing == (0, 1)


@settings(deadline=None)
@given(ANSWERS)
def test_the_majority_is_a_count(answers: list[str]) -> None:
    values = [float(a) if a[:1].isdigit() else None for a in answers]
    got = vote([f"#### {a}" for a in answers], rule="number")
    counts = Counter(v for v in values if v is not None)
    assert sorted(got.agreeing + got.disagreeing) == list(range(len(answers)))
    assert got.unreadable == tuple(i for i, v in enumerate(values) if v is None)
    if counts:
        assert len(got.agreeing) == max(counts.values())
        assert got.confidence == max(counts.values()) / len(answers)
        assert {values[i] for i in got.agreeing} == {float(got.answer)}


def test_classes() -> None:
    assert answer_classes(["2", "x", "1", "2.0", "", "1"], "number") == [0, None, 1, 0, None, 1]
    assert answer_classes(["2", "2.0", "2"], "string") == [0, 1, 0]


def test_classes_of_a_relation_that_is_not_transitive() -> None:
    """75 = 75 % = 0.75 by math-verify, but 75 and 0.75 differ."""
    pytest.importorskip("math_verify")
    assert answer_classes(["75", "75%", "0.75"]) == [0, 0, 1]
    assert answer_classes(["75%", "75", "0.75"]) == [0, 0, 0]


def test_wrong_values() -> None:
    for samples in ([], "#### 1"):
        with pytest.raises(W2SError, match="expected at least one text"):
            vote(samples, rule="number")
    with pytest.raises(W2SError, match="rule is 'x'"):
        vote(["#### 1"], rule="x")
