"""Runs with many supervisors, of seconds, and what they store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from helpers.toy_run import config
from w2s_fast.config import RunConfig
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.stages.training_set import folds

SCRATCH = {"source": "scratch", "hidden": 16, "layers": 1, "heads": 2}


def votes_of(text: str) -> list[int]:
    """The votes that the column has, with the errors planted in them."""
    number = int(text.split()[-1])
    label = number % 2
    g = np.random.default_rng(number)
    right = g.random(5) < [0.9, 0.85, 0.8, 0.75, 0.7]
    votes = np.where(right, label, 1 - label)
    votes[g.random(5) < 0.4] = -1
    return votes.tolist() if number % 10 else [-1] * 5  # a tenth of the rows has no votes


def write_rows(path: Path) -> Path:
    """Write 300 rows of two classes with the votes of five supervisors."""
    # The word is wrong in a quarter of the rows.
    words = np.where(np.random.default_rng(0).random(300) < 0.75, range(300), range(1, 301)) % 2
    rows = [
        {
            "text": f"{('bad', 'good')[word]} word {i}",
            "label": i % 2,
            "votes": votes_of(f"row {i}"),
        }
        for i, word in enumerate(words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def supervised(path: Path, sources: list[str], out: str = "out", **more: Any) -> RunConfig:
    """A run of seconds whose weak labels come from these sources."""
    block = {"sources": sources, **more.pop("supervisors", {})}
    task = {
        "name": "local", "path": str(path), "votes": "votes",
        "n_weak": 60, "n_transfer": 120, "n_test": 80, **more.pop("task", {}),
    }  # fmt: skip
    return config(path.parent / out, task=task, supervisors=block, **more)


def folder_of(results: dict[str, Any], cfg: RunConfig, job: str) -> Path:
    """The folder of a finished job."""
    return cfg.store_dir / results["provenance"]["stages"][job]["folder"]


def labels_of(
    results: dict[str, Any], cfg: RunConfig, job: str, ids: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The stored labels (N, 2) of a finished job, and their weights."""
    folder = folder_of(results, cfg, job) / artifacts.LABELS
    return artifacts.read_weighted_probs(folder, ids, 2)


def fold_of(data: Any, n_folds: int) -> np.ndarray:
    """The fold of each row of the weak split, at seed 0."""

    class Context:
        class job:
            seed = 0

    return folds(Context, data.weak, n_folds)  # type: ignore[arg-type]
