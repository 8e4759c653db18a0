"""Predictions of one model and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_fast import metrics

SCORE_NAMES = (
    "auroc", "balanced", "f1", "harm_score", "worst_group", "ood", "ood_worst_group",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one model, beside the true answers.

    Attributes:
        chosen: (N,) classes, or final answers as text; "" where a completion has none.
        gold: (N,) true classes or answers.
        probs: (N, C) class probabilities; None for generation tasks.
        harm_score: (N,) scores of the task's scorer; None if it has none.
        subgroups: (N,) names of subgroups; None if the task has none.
        ood: Predictions of the out-of-distribution test items; None if the task has none.
    """

    chosen: np.ndarray
    gold: np.ndarray
    probs: np.ndarray | None
    harm_score: np.ndarray | None = None
    subgroups: np.ndarray | None = None
    ood: Predictions | None = None

    @property
    def right(self) -> np.ndarray:
        """(N,) bool; a missing answer is never right."""
        return (self.chosen == self.gold) & (self.chosen != "")

    @property
    def accuracy(self) -> float:
        """Share of right items."""
        return float(self.right.mean())

    @property
    def n_classes(self) -> int:
        """C, or 0 for generation tasks, where chance level is 0."""
        return 0 if self.probs is None else self.probs.shape[1]

    def scores(self) -> dict[str, float | None]:
        """Return ``SCORE_NAMES``, None where a score is undefined.

        They are AUROC, balanced accuracy, F1, mean harm score, worst-group accuracy, and accuracy
        and worst-group accuracy of the out-of-distribution items.
        """
        scores: dict[str, float | None] = dict.fromkeys(SCORE_NAMES)
        if self.harm_score is not None:
            scores["harm_score"] = float(self.harm_score.mean())
        if self.probs is not None:
            scores["auroc"] = metrics.auroc(self.probs, self.gold)
            scores["balanced"] = metrics.balanced_accuracy(self.probs, self.gold)
            scores["f1"] = metrics.f1(self.probs, self.gold)
        if self.subgroups is not None:
            scores["worst_group"] = metrics.worst_group_accuracy(
                self.right, self.gold, self.subgroups
            )
        if self.ood is not None:
            scores["ood"] = self.ood.accuracy
            scores["ood_worst_group"] = self.ood.scores()["worst_group"]
        return scores

    def calibration(self) -> dict[str, Any] | None:
        """Return ECE, what chance adds to it, and the reliability diagram; None without classes."""
        if self.probs is None:
            return None
        curve = metrics.calibration_curve(self.probs, self.gold)
        return {
            "ece": metrics.ece(self.probs, self.gold),
            "ece_noise": metrics.ece_noise(self.probs),
            "n": curve.n.tolist(),
            "confidence": curve.confidence.tolist(),
            "accuracy": curve.accuracy.tolist(),
        }


def calibrations(
    models: Mapping[str, Sequence[Predictions]],
) -> dict[str, dict[str, Any] | None]:
    """Return the calibration of every model over the items of all its runs together."""
    return {name: _pooled(runs).calibration() for name, runs in models.items()}


def _pooled(runs: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several runs as if they were of one; answers and classes only."""
    probs = [p.probs for p in runs if p.probs is not None]
    return Predictions(
        np.concatenate([p.chosen for p in runs]),
        np.concatenate([p.gold for p in runs]),
        np.concatenate(probs) if probs else None,
    )
