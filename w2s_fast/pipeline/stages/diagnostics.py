"""Diagnostics of a run that need no true labels of the transfer set, as results.json has them.

The one exception is ``gain``, which stands beside the misfit that bounds it and uses the true
labels of the test items, as all scores do.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.pipeline.artifacts import FIT, LOG, OVERLAP, TRUST_SCORES, read_fit
from w2s_fast.pipeline.jobs import JobPlan
from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.pipeline.stages.calibration import read_calibration


@dataclass(frozen=True, eq=False)
class WeakLabels:
    """What diagnostics know about the weak labels of one seed.

    Attributes:
        probs: (N, C) labels of the transfer set; None for generation tasks.
        row_of: Row of each text, by id.
        calibration: Record of stage `calibration`; None if the run has none.
        accuracy: Expected accuracy: mean probability of the top class after calibration; None
            without.
        overlap: Record of stage `overlap`, or None.
    """

    probs: np.ndarray | None
    row_of: Mapping[str, int]
    calibration: dict[str, Any] | None
    accuracy: float | None
    overlap: dict[str, Any] | None


def read_weak_labels(
    seed: int, jobs: JobPlan, folders: Mapping[str, Path], labels: Predictions, ids: tuple[str, ...]
) -> WeakLabels:
    """Read what the stages of a seed wrote about its weak labels.

    Args:
        seed: Seed of the run.
        jobs: Jobs of the run.
        folders: Folders of the finished jobs, by name.
        labels: Labels of the transfer set.
        ids: Ids of the transfer set.
    """
    row_of = {name: row for row, name in enumerate(ids)}
    own = {job.stage: job.name for job in jobs.jobs if job.seed == seed and job.name in folders}
    overlap = None
    if "overlap" in own:
        overlap = json.loads((folders[own["overlap"]] / OVERLAP).read_bytes())
    labelled = jobs.supervisors[seed].labels
    calibrates = dict(next(j for j in jobs.jobs if j.name == labelled).inputs)
    name = calibrates.get("calibrator", f"calibration/{seed}")
    if name not in folders or labels.probs is None:
        return WeakLabels(labels.probs, row_of, None, None, overlap)
    calibrator, record = read_calibration(folders[name])
    applied = "calibrator" in calibrates
    calibrated = labels.probs if applied else calibrator(labels.probs)
    accuracy = float(calibrated.max(1).mean())
    record = {**record, "applied": applied, "expected_accuracy": accuracy}
    return WeakLabels(labels.probs, row_of, record, accuracy, overlap)


def fit_row(folder: Path, weak: WeakLabels) -> dict[str, Any] | None:
    """Return how a student fitted its weak model's labels; None if that was not recorded.

    Args:
        folder: Folder of the student's stage.
        weak: The weak labels of its seed.
    """
    if not (folder / FIT).is_dir() or weak.probs is None:
        return None
    steps, ids, trajectory = read_fit(folder / FIT, weak.probs.shape[1])
    labels = weak.probs[[weak.row_of[name] for name in ids]]
    agrees = trajectory.argmax(2) == labels.argmax(1)
    alarm = None
    if weak.accuracy is not None and weak.calibration is not None:
        alarm = metrics.fit_alarm(agrees, weak.accuracy, weak.calibration["n"])
    best = json.loads((folder / LOG).read_bytes())["best"]  # None: the last weights were kept
    kept = trajectory[-1 if best is None else steps.index(best)]
    return {
        "n": len(ids),
        "steps": steps,
        "agreement": agrees.mean(1).tolist(),
        "alarm_step": None if alarm is None else steps[alarm],
        "misfit": asdict(metrics.misfit(kept, labels)),
    }


def weak_label_rows(weak: Mapping[int, WeakLabels]) -> list[dict[str, Any]]:
    """Return the records of calibration and overlap by seed; empty if there are none."""
    return [
        {"seed": seed, "calibration": w.calibration, "overlap": w.overlap}
        for seed, w in weak.items()
        if w.calibration is not None or w.overlap is not None
    ]


def trust_rows(
    jobs: JobPlan, folders: Mapping[str, Path], seeds: Container[int]
) -> list[dict[str, Any]]:
    """Return the scores of every trust model by seed and student; students may share one.

    Args:
        jobs: Jobs of the run.
        folders: Folders of the finished jobs, by name.
        seeds: Seeds that are reported.
    """
    return [
        {
            "seed": job.seed,
            "name": job.name.split("/", 2)[2].rpartition("/")[0],  # trust/SEED/STUDENT/NUMBER
            **json.loads((folders[job.name] / TRUST_SCORES).read_bytes()),
        }
        for job in jobs.jobs
        if job.stage == "trust" and job.seed in seeds
    ]
