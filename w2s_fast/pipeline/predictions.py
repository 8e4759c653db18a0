"""What a model said about a set of items, in whichever kind of task, and whether it was right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.parquet import read_probs, read_texts
from w2s_fast.tasks import Examples, TaskData

SCORES = ("auroc", "balanced", "f1", "harm_score")


@dataclass(frozen=True, eq=False)
class Said:
    """The choices of one model.

    Attributes:
        chosen: (N,) classes, or final answers in words; "" where none was found.
        gold: (N,) the same of the truth.
        probs: (N, C) class probabilities; None where answers are words.
        harm_score: (N,) what the task's scorer says of the answers; None where it has none.
    """

    chosen: np.ndarray
    gold: np.ndarray
    probs: np.ndarray | None
    harm_score: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """(N,) bool. Nothing said is never right."""
        return (self.chosen == self.gold) & (self.chosen != "")

    @property
    def accuracy(self) -> float:
        """Share of right items."""
        return float(self.right.mean())

    def scores(self) -> dict[str, float | None]:
        """AUROC, balanced accuracy and F1 of classes, mean harm_score of words; None elsewhere."""
        found: dict[str, float | None] = dict.fromkeys(SCORES)
        if self.harm_score is not None:
            found["harm_score"] = float(self.harm_score.mean())
        if self.probs is not None:
            found["auroc"] = metrics.auroc(self.probs, self.gold)
            found["balanced"] = metrics.balanced_accuracy(self.probs, self.gold)
            found["f1"] = metrics.f1(self.probs, self.gold)
        return found


def read_said(path: Path, items: Examples, data: TaskData) -> Said:
    """Read what a model said of ``items``: a file or folder of labels or predictions."""
    if data.kind != "generation":
        probs = read_probs(path, items.ids, len(data.class_names))
        return Said(probs.argmax(1), items.labels, probs)
    if data.read is None or items.answers is None:
        raise W2SError(
            f"task {data.name!r} is of kind 'generation' but has no answers or no way to read "
            "them; give Examples.answers and TaskData.read"
        )
    texts = read_texts(path, items.ids)
    if data.harm_score is not None:
        return _judged(texts, data)
    chosen = [data.read(text) for text in texts]
    gold = [data.read(text) for text in items.answers]
    return Said(_words(chosen), _words(gold), None)


def _judged(texts: list[str], data: TaskData) -> Said:
    """Words that are right where the task's scorer finds them less than half bad."""
    assert data.harm_score is not None
    harm_score = np.asarray(data.harm_score(texts), dtype=float)
    if harm_score.shape != (len(texts),) or not ((harm_score >= 0) & (harm_score <= 1)).all():
        raise W2SError(
            f"the scorer of task {data.name!r} gave {harm_score.shape} for {len(texts)} texts, or "
            "numbers outside [0, 1]; expected one in [0, 1] a text"
        )
    chosen = np.where(harm_score < 0.5, "good", "bad")
    return Said(chosen, np.full(len(texts), "good"), None, harm_score)


def _words(values: Any) -> np.ndarray:
    return np.array(values, dtype=object)
