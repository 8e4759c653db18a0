"""The scores of many supervisors by seed, as results.json has them.

The true labels of transfer and test items score them here; no label model has seen any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.pipeline.artifacts import SUPERVISORS, VOTES, read_votes
from w2s_fast.pipeline.jobs import JobPlan
from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.tasks import TaskData


def supervisor_row(
    seed: int,
    jobs: JobPlan,
    folders: Mapping[str, Path],
    data: TaskData,
    labels: Predictions,
    test: Predictions,
) -> dict[str, Any] | None:
    """Return the scores of the supervisors of one seed; None if the weak model labels alone.

    Args:
        seed: Seed of the run.
        jobs: Jobs of the run.
        folders: Folders of the finished jobs, by name.
        data: Splits of the seed.
        labels: Labels of the transfer set.
        test: Predictions of the test items.
    """
    own = jobs.supervisors[seed]
    record = folders[own.labels] / SUPERVISORS
    if not record.exists():
        return None
    known = json.loads(record.read_bytes())
    votes = read_votes(folders[own.labels] / VOTES, data.transfer.ids)[1]
    test_votes = read_votes(folders[own.test] / VOTES, data.test.ids)[1]
    estimated = known.pop("estimated_accuracy") or [None] * len(known["names"])
    columns = zip(known.pop("names"), known.pop("coverage"), estimated, strict=True)
    sources = [
        {
            "name": name,
            "coverage": coverage,
            "accuracy": _accuracy(votes[:, j], data.transfer.labels),
            "estimated_accuracy": expected,
        }
        for j, (name, coverage, expected) in enumerate(columns)
    ]
    return {
        "seed": seed,
        **known,
        "transfer": _covered_scores(votes, labels, len(data.class_names)),
        "test": _covered_scores(test_votes, test, len(data.class_names)),
        "sources": sources,
    }


def _accuracy(votes: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the share of right votes among those cast; None if there are none."""
    cast = votes >= 0
    return float((votes[cast] == labels[cast]).mean()) if cast.any() else None


def _covered_scores(
    votes: np.ndarray, predicted: Predictions, n_classes: int
) -> dict[str, float | None]:
    """Return the accuracy of a posterior on all rows and on rows with votes, beside a constant."""
    covered = (votes >= 0).any(1)
    shares = np.bincount(predicted.gold, minlength=n_classes) / len(predicted.gold)
    return {
        "covered": float(covered.mean()),
        "accuracy": predicted.accuracy,
        "covered_accuracy": _mean(predicted.right[covered]),
        "constant": float(shares.max()),
    }


def _mean(values: Sequence[bool] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
