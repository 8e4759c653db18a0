"""Scores of one model's predictions: accuracy, also of the worst group, F1, AUROC, agreement.

N items, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Share of test items where student and weak model predict the same class; None: no items."""

    all: float | None
    weak_right: float | None
    weak_wrong: float | None


def accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows of ``probs`` (N, C) whose largest entry is at ``labels`` (N,)."""
    return float((probs.argmax(1) == labels).mean())


def balanced_accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean recall over the classes that occur in ``labels`` (N,).

    Always predicting one class scores 1 / (number of these classes).
    """
    right = probs.argmax(1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def worst_group_accuracy(right: np.ndarray, labels: np.ndarray, subgroups: np.ndarray) -> float:
    """Return the lowest accuracy over the groups (label, subgroup) that occur.

    Source: Sagawa et al. 2020 (arXiv 1911.08731), Sec. 2.

    Args:
        right: (N,) bool, whether a prediction is right.
        labels: (N,) classes.
        subgroups: (N,) numbers or names, such as whether a spurious feature agrees with the label.
    """
    _, group = np.unique(
        np.stack([np.unique(part, return_inverse=True)[1] for part in (labels, subgroups)]),
        axis=1,
        return_inverse=True,
    )
    return float((np.bincount(group, right) / np.bincount(group)).min())


def f1(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Return F1 = 2 TP / (2 TP + FP + FN) of the top classes of ``probs`` (N, C).

    Two classes: F1 of class 1. More: the mean over the classes that occur in ``labels`` (N,) or are
    predicted. None for two classes if class 1 neither occurs nor is predicted.
    """
    chosen = probs.argmax(1)
    classes = [1] if probs.shape[1] == 2 else range(probs.shape[1])
    each = [
        2 * np.sum((chosen == c) & (labels == c)) / n
        for c in classes
        if (n := np.sum(chosen == c) + np.sum(labels == c))
    ]
    return float(np.mean(each)) if each else None


def auroc(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the area under the ROC curve; ties count half.

    Two classes: that of P(class 1). More: the one-vs-rest mean over the classes that occur.
    None if only one class occurs in ``labels`` (N,).
    """
    classes = [1] if probs.shape[1] == 2 else range(probs.shape[1])
    areas = [_binary_auroc(probs[:, c], labels == c) for c in classes]
    defined = [a for a in areas if a is not None]
    return float(np.mean(defined)) if defined else None


def _binary_auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if n_pos == 0 or n_neg == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2  # ties share the mean of their ranks
    rank_sum = mid_ranks[inverse][positive].sum()
    return float((rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def agreement(student: np.ndarray, weak: np.ndarray, labels: np.ndarray) -> Agreement:
    """Return the agreement of student and weak model (N,), split by whether the latter is right."""
    same, right = student == weak, weak == labels

    def share(mask: np.ndarray) -> float | None:
        return float(same[mask].mean()) if mask.any() else None

    return Agreement(share(np.ones_like(right)), share(right), share(~right))
