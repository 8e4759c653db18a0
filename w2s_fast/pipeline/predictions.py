"""Predictions of one model and their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast import metrics

SCORE_NAMES = ("auroc", "balanced", "f1", "harm_score")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one model, beside the true answers.

    Attributes:
        chosen: (N,) classes, or final answers as text; "" where a completion has none.
        gold: (N,) true classes or answers.
        probs: (N, C) class probabilities; None for generation tasks.
        harm_score: (N,) scores of the task's scorer; None if it has none.
    """

    chosen: np.ndarray
    gold: np.ndarray
    probs: np.ndarray | None
    harm_score: np.ndarray | None = None

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
        """Return AUROC, balanced accuracy, F1 and mean harm score; None where one is undefined."""
        scores: dict[str, float | None] = dict.fromkeys(SCORE_NAMES)
        if self.harm_score is not None:
            scores["harm_score"] = float(self.harm_score.mean())
        if self.probs is not None:
            scores["auroc"] = metrics.auroc(self.probs, self.gold)
            scores["balanced"] = metrics.balanced_accuracy(self.probs, self.gold)
            scores["f1"] = metrics.f1(self.probs, self.gold)
        return scores
