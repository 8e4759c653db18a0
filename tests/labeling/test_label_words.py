"""Votes of class words, and word counts of texts."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.labeling import Vocabulary, label_word_votes

PROBS = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])


def test_calibration_undoes_a_preferred_word() -> None:
    """Without it every row would vote for class 0; odds are divided by those of the mean, 3."""
    votes = label_word_votes(PROBS, threshold=0.65)
    # Odds of class 0: 9, 4, 7/3, 1.5, so 3, 4/3, 7/9, 1/2.
    assert votes.tolist() == [0, -1, -1, 1] and votes.dtype == torch.int64
    assert label_word_votes(PROBS, threshold=0.5).tolist() == [0, 0, 1, 1]


def test_a_probability_at_the_threshold_is_a_vote() -> None:
    assert label_word_votes([[0.75, 0.25], [0.25, 0.75]], threshold=0.75).tolist() == [0, 1]


def test_prior_and_class_balance() -> None:
    assert label_word_votes(PROBS, threshold=0.5, prior=[0.5, 0.5]).tolist() == [0, 0, 0, 0]
    assert label_word_votes(PROBS, threshold=0.5, class_balance=[0.75, 0.25]).tolist() == [0] * 4
    given_prior = label_word_votes(PROBS, threshold=0.65, prior=PROBS.mean(0))
    assert torch.equal(given_prior, label_word_votes(PROBS, threshold=0.65))


@given(st.integers(2, 5), st.integers(2, 30), st.integers(0, 1000))
def test_words_that_a_model_prefers_change_nothing(k: int, n: int, seed: int) -> None:
    """Multiplying a class's probability by a factor in every row is a preference for its word."""
    g = torch.Generator().manual_seed(seed)
    probs = torch.rand(n, k, generator=g).double().add(0.1)
    probs /= probs.sum(1, keepdim=True)
    factor = torch.rand(k, generator=g).double() + 0.2
    prior = torch.full((k,), 1 / k).double()
    biased = probs * factor
    biased /= biased.sum(1, keepdim=True)
    preferred = prior * factor / (prior * factor).sum()
    expected = label_word_votes(probs, threshold=1 / k, prior=prior)
    assert torch.equal(label_word_votes(biased, threshold=1 / k, prior=preferred), expected)
    order = torch.randperm(k, generator=g)
    renamed = label_word_votes(probs[:, order], threshold=1 / k, prior=prior)
    assert torch.equal(order[renamed], expected)


@pytest.mark.parametrize(
    ("probs", "options", "message"),
    [
        ([0.5, 0.5], {}, "probs have shape (2,); expected (rows, classes)"),
        ([[1.0]], {}, "n_classes is 1"),
        ([[0.5, 0.5], [0.5, float("nan")]], {}, "probs[1, 1] is nan; expected a probability"),
        ([[1.5, -0.5]], {}, "probs[0, 0] is 1.5; expected a probability: pass logits.softmax(-1)"),
        ([[0.3, 0.3]], {}, "row 0 of probs sums to 0.6000; expected 1"),
        ([[1.0, 0.0], [1.0, 0.0]], {}, "the words of class 1 have probability 0 in every row"),
        (PROBS, {"threshold": 0.4}, "threshold is 0.4; expected a number from 0.5 to 1"),
        (PROBS, {"class_balance": [0.5, 0.6]}, "1.1"),
        (PROBS, {"prior": [1.0]}, "shape"),
        ("text", {}, "probs cannot be read as numbers (n, K)"),
    ],
)
def test_wrong_probabilities(probs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        label_word_votes(probs, **options)


TEXTS = ["a cat, a CAT", "the dog", "the cat sat", "a mat"]


def test_counts_of_words() -> None:
    v = Vocabulary().fit(TEXTS)
    assert v.words == ("a", "cat", "the")
    assert v.counts([*TEXTS, "none of them"]).tolist() == [
        [2, 2, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0],
    ]  # fmt: skip
    assert Vocabulary(min_df=1, max_df=0.25).fit(TEXTS).words == ("dog", "mat", "sat")
    assert Vocabulary(max_words=2).fit(TEXTS).words == ("a", "cat")


def test_tf_idf_by_hand() -> None:
    v = Vocabulary().fit(TEXTS)
    idf = 1 + math.log(5 / 3)  # each of the words is in two texts
    assert v.idf.tolist() == pytest.approx([idf] * 3)
    rows = v.tf_idf(["a cat cat", "nothing"])
    a, cat = 1.0, 1 + math.log(2)
    length = math.hypot(a, cat)
    assert rows[0].tolist() == pytest.approx([a / length, cat / length, 0.0])
    assert rows[1].tolist() == [0.0, 0.0, 0.0]
    rare = Vocabulary(min_df=1).fit(TEXTS)
    weights = dict(zip(rare.words, rare.idf.tolist(), strict=True))
    assert weights["dog"] == pytest.approx(1 + math.log(5 / 2)) and weights["dog"] > weights["cat"]


def test_wrong_vocabulary() -> None:
    with pytest.raises(W2SError, match="no words yet; call fit"):
        Vocabulary().counts(TEXTS)
    with pytest.raises(W2SError, match="min_df is 0"):
        Vocabulary(min_df=0)
    with pytest.raises(W2SError, match=re.escape("texts[0] is 3; expected a text")):
        Vocabulary().fit([3])
    with pytest.raises(W2SError, match="no word is in at least 2"):
        Vocabulary().fit(["!!", "a"])


def test_a_threshold_that_no_row_reaches() -> None:
    with pytest.warns(DataWarning, match="no calibrated probability reaches the threshold 0.99"):
        assert (label_word_votes(PROBS, threshold=0.99) == -1).all()
