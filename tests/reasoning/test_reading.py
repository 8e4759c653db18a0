"""Readers of final answers do not guess."""

from __future__ import annotations

import pytest

from w2s_fast.errors import W2SError
from w2s_fast.reasoning import marked_answer, stated_answer
from w2s_fast.reasoning.reading import get_reader


@pytest.mark.parametrize(
    ("text", "marked", "stated"),
    [
        ("48 / 2 = 24\n#### 72", "72", ""),
        ("#### 2+7=9 \nQuestion: What else?\n#### 5", "2+7=9", ""),
        ("####\n 1/2 cup", "1/2 cup", ""),
        ("so it is 7", "", ""),
        ("Thus. The answer is: $x^2$.", "", "$x^2$"),
        ("The answer is 3.\nNo, the answer is: 0.5", "", "0.5"),
        ("", "", ""),
    ],
)
def test_known_texts(text: str, marked: str, stated: str) -> None:
    assert marked_answer(text) == marked and stated_answer(text) == stated


def test_readers_by_name() -> None:
    assert get_reader("number")("it is 1,000.0") == "1000"
    assert get_reader(str.upper) is str.upper
    with pytest.raises(
        W2SError, match="read is 'mark'; expected a function or one of marked, stat"
    ):
        get_reader("mark")
