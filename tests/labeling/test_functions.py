"""Labeling functions: the decorator, keywords, expressions, and what votes they give."""

from __future__ import annotations

import enum
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast import W2SError
from w2s_fast.errors import DataWarning
from w2s_fast.labeling import (
    ABSTAIN,
    LabelingFunction,
    apply_functions,
    keyword_candidates,
    keywords,
    labeling_function,
    regex,
)

TEXTS = ("Subscribe to my channel", "great song", "subscribed, love it")


@labeling_function()
def long_text(text: str) -> int:
    """Vote for class 1 for a text of more than 12 characters."""
    return 1 if len(text) > 12 else ABSTAIN


@labeling_function(name="same as pair")
def same(text: str, pair: str) -> int:
    return int(text == pair)


class Label(enum.IntEnum):
    SPAM = 1


def made(function: Callable[..., Any], name: str = "f") -> LabelingFunction:
    return labeling_function(name)(function)


def test_decorator_makes_a_function_with_a_name() -> None:
    assert long_text.name == "long_text" and same.name == "same as pair"
    assert long_text("subscribe to me") == 1 and long_text("no") == ABSTAIN
    assert (long_text.takes_pair, same.takes_pair) == (False, True)
    assert "class 1" in (long_text.__doc__ or "")


def test_votes_of_texts_and_pairs() -> None:
    votes = apply_functions([long_text, same], TEXTS, pairs=("x", "great song", "y"), n_classes=2)
    assert votes.dtype == torch.int64
    assert votes.tolist() == [[1, 0], [-1, 1], [1, 0]]
    assert apply_functions(long_text, TEXTS).tolist() == [[1], [-1], [1]]


def test_second_parameters_with_a_default() -> None:
    assert not made(lambda text, least=3: 0).takes_pair
    assert made(lambda text, pair=None: 0).takes_pair
    assert made(lambda text, pair=None: 0 if pair is None else 1)("t", "p") == 1


@pytest.mark.parametrize("value", [1, np.int8(1), Label.SPAM, torch.tensor(1)])
def test_classes_may_be_any_integer(value: Any) -> None:
    assert apply_functions(made(lambda t: value), ["t"]).tolist() == [[1]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            True,
            "'f' returned True for row 0; expected a class, 0 to 1, or ABSTAIN (-1); write `ret",
        ),
        (np.False_, "write `return 1 if condition else ABSTAIN`"),
        (None, "returned None for row 0; expected a class, 0 to 1, or ABSTAIN (-1); did it forget"),
        ("SPAM", "'f' returned 'SPAM' for row 0; expected a class"),
        (1.0, "returned 1.0 for row 0"),
        (2, "returned 2 for row 0; expected a class, 0 to 1"),
        (-2, "returned -2 for row 0"),
    ],
)
def test_wrong_values_name_function_and_row(value: Any, message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        apply_functions(made(lambda t: value), ["t"], n_classes=2)


def test_classes_are_open_without_their_number() -> None:
    assert apply_functions(made(lambda t: 7), ["t"]).tolist() == [[7]]


def test_failure_names_function_row_and_error() -> None:
    failing = made(lambda text: int(text), "reads numbers")
    with pytest.raises(W2SError, match="'reads numbers' failed for row 1: ValueError: invalid lit"):
        apply_functions(failing, ["1", "b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apply_functions([long_text, made(len, "long_text")], TEXTS), "both named 'long_t"),
        (lambda: apply_functions([], TEXTS), "there are no labeling functions"),
        (
            lambda: apply_functions([len], TEXTS),
            "functions[0] is <built-in function len>; expected",
        ),
        (lambda: apply_functions(long_text, "a text"), "texts are a single text; expected a seq"),
        (lambda: apply_functions(long_text, []), "texts are empty"),
        (lambda: apply_functions(long_text, ["a", None]), "texts[1] is None; expected a text"),
        (lambda: apply_functions(same, TEXTS), "'same as pair' takes (text, pair), and there are"),
        (lambda: apply_functions(same, TEXTS, ["x"]), "there are 1 pairs for 3 texts"),
        (lambda: apply_functions(same, TEXTS, ["x", 3, "y"]), "pairs[1] is 3; expected a text"),
        (lambda: apply_functions(long_text, TEXTS, n_classes=1), "n_classes is 1"),
        (lambda: labeling_function(len), "without parentheses; write @labeling_function()"),
        (lambda: labeling_function()(3), "labeling_function() decorates 3; expected a function"),
        (lambda: labeling_function(" ")(len), "name of a labeling function is ' '"),
        (lambda: made(lambda: 0), "'f' requires nothing; expected (text) or (text, pair)"),
        (lambda: made(lambda a, b, c: 0), "'f' requires a, b, c; expected (text) or (text, pair)"),
        (lambda: made(lambda a, *, flag: 0), "'f' requires a, flag; expected"),
        (lambda: made(int), "labeling function 'f' has no signature; wrap it in a function"),
        (lambda: keywords(1, []), "words are empty"),
        (lambda: keywords(1, ["a", " "]), "words have ' '; expected a word"),
        (lambda: keywords(-1, "a"), "label is -1; expected a class"),
        (lambda: keywords(True, "a"), "label is True; expected a class"),
        (lambda: regex(0, "("), "pattern '(' cannot be compiled: missing )"),
        (lambda: regex(0, b"a"), "pattern b'a' is of bytes"),
        (lambda: regex(0, ""), "pattern is empty"),
        (lambda: keyword_candidates(["a b", "c"], 2, min_df=2), "no word is in at least 2 and at"),
        (lambda: keyword_candidates(["a"], 1), "n_classes is 1"),
        (lambda: keyword_candidates(["a"], 2, max_df=2.0), "max_df is 2.0; expected a number from"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        call()


def test_functions_that_never_vote_are_a_warning() -> None:
    silent = [made(lambda t: ABSTAIN, f"silent {i}") for i in range(7)]
    with pytest.warns(DataWarning, match="7 of 8 labeling functions abstain for all 3 rows: 'sil"):
        apply_functions([long_text, *silent], TEXTS)
    with pytest.warns(DataWarning, match="1 of 1 labeling functions abstain for all 2 rows"):
        assert (apply_functions(long_text, ["a", "b"]) == ABSTAIN).all()


def test_keywords_match_whole_words_of_any_case() -> None:
    votes = apply_functions(keywords(1, ["subscribe", "song"]), TEXTS)
    assert votes[:, 0].tolist() == [1, 1, -1]
    assert apply_functions(keywords(1, "subscribe", whole_words=False), TEXTS)[2, 0] == 1
    assert apply_functions(keywords(1, ["song", "subscribe"], ignore_case=False), TEXTS)[0, 0] == -1


def test_keywords_of_signs_and_phrases() -> None:
    texts = ["win $$$ now", "smile :) please", "check  out\nthis", "checkout", "costs 5$$$"]
    votes = apply_functions(keywords(0, ["$$$", ":)", "check out"]), texts)
    assert votes[:, 0].tolist() == [0, 0, 0, -1, -1]
    assert apply_functions(keywords(0, "a.b"), ["a.b", "axb"])[:, 0].tolist() == [0, -1]


def test_names_of_keywords_and_expressions() -> None:
    assert keywords(1, ["a", "b", "c", "d"]).name == "1: a, b, c and 1 more"
    assert keywords(1, "a", name="first").name == "first"
    assert regex(0, r"\d+").name == r"0: /\d+/"
    assert apply_functions(regex(0, r"^\d+$"), ["12", "a1"])[:, 0].tolist() == [0, -1]


@given(
    st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=1, max_size=4),
    st.lists(st.text("abcd \n", max_size=12), min_size=1, max_size=8),
)
def test_keywords_are_what_they_say(words: list[str], texts: list[str]) -> None:
    """A phrase votes exactly where its words follow one another in the text."""
    function = keywords(2, words, name="f")
    for text in texts:
        tokens, phrases = text.split(), [word.split() for word in words]
        expected = any(
            tokens[i : i + len(phrase)] == phrase for phrase in phrases for i in range(len(tokens))
        )
        assert (function(text) == 2) == expected


@given(st.permutations(range(6)))
def test_rows_and_functions_commute_with_permutations(order: list[int]) -> None:
    texts = ["a b", "b c", "c", "a c d", "d", "a b c d"]
    functions = [keywords(i % 2, w, name=w) for i, w in enumerate("abcd")]
    votes = apply_functions(functions, texts)
    assert torch.equal(apply_functions(functions, [texts[i] for i in order]), votes[order])
    assert torch.equal(apply_functions(functions[::-1], texts), votes.flip(1))


def test_candidates_are_frequent_words_for_every_class() -> None:
    texts = ["the cat", "the dog", "the cat sat", "the cow", "a dog ran"]
    pool = keyword_candidates(texts, 3, min_df=2, max_df=0.6)
    assert [f.name for f in pool] == [f"{w} -> {c}" for w in ("cat", "dog") for c in range(3)]
    assert apply_functions(pool, texts)[:, 1].tolist() == [1, -1, 1, -1, -1]
    assert len(keyword_candidates(texts, 2, min_df=1, max_words=3, max_df=1.0)) == 6


def test_functions_can_be_pickled() -> None:
    for function in (keywords(1, "subscribe"), regex(0, "a+"), long_text, same):
        copy = pickle.loads(pickle.dumps(function))
        assert copy.name == function.name and copy.takes_pair == function.takes_pair
    assert pickle.loads(pickle.dumps(long_text)) is long_text
    assert pickle.loads(pickle.dumps(keywords(1, "song")))("a song") == 1
