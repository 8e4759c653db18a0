"""Scores of predictions: against brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast import metrics


def test_worst_group_is_the_lowest_accuracy_over_label_and_subgroup() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    subgroups = np.array(["a", "a", "b", "b", "a", "a", "b", "b"])
    right = np.array([1, 1, 1, 0, 1, 1, 0, 1], dtype=bool)
    assert metrics.worst_group_accuracy(right, labels, subgroups) == 0.5
    right[2:4] = False, False
    assert metrics.worst_group_accuracy(right, labels, subgroups) == 0.0
    # A group that does not occur is no group: without (0, b) only (1, b) is below 1.
    rest = [0, 1, 4, 5, 6, 7]
    assert metrics.worst_group_accuracy(right[rest], labels[rest], subgroups[rest]) == 0.5
    # Neither labels nor subgroups alone decide: each has an accuracy of one half.
    labels, subgroups = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert metrics.worst_group_accuracy(labels == subgroups, labels, subgroups) == 0.0


@pytest.mark.parametrize("decimals", [1, 8], ids=["many ties", "no ties"])
def test_auroc_counts_pairs(decimals: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=80)
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), decimals)
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None]
    expected = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
    assert metrics.auroc(np.stack([1 - scores, scores], 1), labels) == pytest.approx(expected)


def test_auroc_of_three_classes_is_the_mean_over_those_that_occur() -> None:
    probs = np.random.default_rng(1).dirichlet(np.ones(3), 60)
    labels = np.random.default_rng(2).integers(2, size=60)  # class 2 never occurs
    each = [metrics.auroc(np.stack([-probs[:, c], probs[:, c]], 1), labels == c) for c in (0, 1)]
    assert metrics.auroc(probs, labels) == pytest.approx(np.mean(each))
    assert metrics.auroc(probs, np.zeros(60, int)) is None


def _choose(classes: list[int], n_classes: int) -> np.ndarray:
    """(N, C) probabilities whose largest entries are these classes."""
    return 0.1 + 0.5 * np.eye(n_classes)[classes]


def test_balanced_accuracy_and_f1_of_two_classes() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    probs = _choose([0] * 7 + [1] + [1, 0], 2)
    assert metrics.accuracy(probs, labels) == 0.8
    assert metrics.balanced_accuracy(probs, labels) == pytest.approx((7 / 8 + 1 / 2) / 2)
    assert metrics.f1(probs, labels) == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    never = _choose([0] * 10, 2)
    assert metrics.balanced_accuracy(never, labels) == 0.5 and metrics.f1(never, labels) == 0
    none = np.zeros(10, int)
    assert metrics.f1(never, none) is None and metrics.f1(probs, none) == 0
    assert metrics.balanced_accuracy(probs, none) == pytest.approx(0.8)


def test_balanced_accuracy_and_f1_of_more_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])  # classes 2 and 3 never occur; 2 is chosen once
    probs = _choose([0, 0, 0, 2, 1, 0], 4)
    assert metrics.balanced_accuracy(probs, labels) == pytest.approx((3 / 4 + 1 / 2) / 2)
    one, two, three = 2 * 3 / (2 * 3 + 1 + 1), 2 * 1 / (2 * 1 + 0 + 1), 0.0
    assert metrics.f1(probs, labels) == pytest.approx((one + two + three) / 3)


def test_agreement_is_split_by_the_supervisors_errors() -> None:
    gold, weak = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 0])
    student = np.array([0, 1, 1, 0, 1])
    agreement = metrics.agreement(student, weak, gold)
    assert (agreement.all, agreement.weak_right, agreement.weak_wrong) == (3 / 5, 2 / 3, 1 / 2)
    assert metrics.agreement(student, gold, gold).weak_wrong is None
