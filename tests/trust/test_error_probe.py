"""A probe finds planted errors, and finds nothing where errors are random."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.trust import probe_errors, word_features

N = 400


def supervisor(wrong: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return true classes, and probabilities of a supervisor that is wrong on these rows."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=N)
    sure = rng.uniform(0.6, 0.99, N)
    top = np.where(wrong, 1 - labels, labels)
    probs = np.stack([1 - sure, sure], 1)
    return labels, np.where(top[:, None] == 1, probs, probs[:, ::-1])


def test_errors_of_a_feature_are_learnable_and_random_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, 5))
    planted = x[:, 2] > 0.9  # 18 %
    probe = probe_errors(x, supervisor(planted)[1], supervisor(planted)[0])
    assert probe.learnable and probe.auroc > 0.95 and probe.accuracy > 0.93
    assert probe.base_rate == pytest.approx(1 - planted.mean()) and probe.gain_interval[0] > 0.05
    assert probe.gain == pytest.approx(probe.accuracy - probe.base_rate)
    rates = [
        probe_errors(x, *supervisor(rng.random(N) < 0.2, seed=s)[::-1], seed=s) for s in range(3)
    ]
    assert sum(r.learnable for r in rates) <= 1 and max(r.gain for r in rates) < 0.03


def test_a_supervisor_that_is_mostly_wrong_has_its_errors_as_base_rate() -> None:
    wrong = np.random.default_rng(2).random(N) < 0.7
    labels, probs = supervisor(wrong)
    x = np.random.default_rng(3).normal(size=(N, 2))
    assert probe_errors(x, probs, labels).base_rate == pytest.approx(wrong.mean())


def test_confidence_alone_does_not_make_errors_learnable() -> None:
    rng = np.random.default_rng(4)
    wrong = rng.random(N) < 0.25
    labels = rng.integers(2, size=N)
    sure = np.where(wrong, 0.55, 0.95)  # it knows exactly where it errs
    top = np.where(wrong, 1 - labels, labels)
    probs = np.where(np.arange(2) == top[:, None], sure[:, None], 1 - sure[:, None])
    x = rng.normal(size=(N, 3))
    assert probe_errors(x, probs, labels).auroc == pytest.approx(0.5, abs=0.1)


def test_too_few_errors_are_an_error_that_says_so() -> None:
    labels, probs = supervisor(np.arange(N) < 9)
    with pytest.raises(W2SError, match="391 labels are right and 9 are wrong"):
        probe_errors(np.zeros((N, 1)), probs, labels)


def test_words_are_counted_once_a_text_and_those_of_all_texts_say_nothing() -> None:
    texts = ["The cat, the cat", "the DOG", "the cat and a dog"]
    # frequency, then alphabet: cat 2, dog 2, a 1, and 1; "the" is in every text
    assert word_features(texts).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]]
    assert word_features(texts, 1).tolist() == [[1], [0], [1]]
    assert word_features(["same", "same"]).tolist() == [[0], [0]]
