"""Runs of generation tasks and of policies, of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig, from_dict

SCRATCH = {"source": "scratch", "hidden": 16, "layers": 1, "heads": 2}
TRAIN = {"epochs": 2, "lr": 0.01, "batch_size": 16, "timeout_s": 120}


def write_sums(path: Path) -> Path:
    """Write 160 sums of two numbers with their answers."""
    rows = [{"prompt": f"{i} + 1 =", "answer": f" {i + 1}"} for i in range(160)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(path: Path) -> Path:
    """Write 200 pairs of a polite and a rude answer."""
    g = np.random.default_rng(0)
    rows = []
    for i in range(200):
        kind, rude = g.choice(["thanks", "please", "gladly"]), g.choice(["no", "never", "away"])
        rows.append(
            {"prompt": f"question {i}:", "chosen": f"yes {kind} {i}", "rejected": f"{rude} {i % 7}"}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_run(folder: Path, methods: list[str], **changes: Any) -> RunConfig:
    """Return a run on sums whose student is a language model from random weights."""
    path = write_sums(folder / "sums.jsonl")
    task = {
        "name": "local_answers", "path": str(path), "read": "number", "answer_tokens": 6,
        "n_weak": 40, "n_transfer": 48, "n_test": 24,
    }  # fmt: skip
    return _run(folder, task, methods=methods, **changes)


def policy_run(folder: Path, preference: str, **changes: Any) -> RunConfig:
    """Return a run on pairs whose weak model and student are policies."""
    path = write_pairs(folder / "pairs.jsonl")
    task = {"name": "pairs", "path": str(path), "n_weak": 60, "n_transfer": 60, "n_test": 40}
    model = {**SCRATCH, "preference": preference}
    return _run(folder, task, **{"weak": model, "student": model, **changes})


def _run(folder: Path, own_task: dict[str, Any], **changes: Any) -> RunConfig:
    values = {
        "weak": SCRATCH, "student": SCRATCH, "weak_train": TRAIN, "student_train": TRAIN,
        "losses": ["xent"], "seeds": [0], "output_dir": str(folder / "out"), "workers": 1,
        "threads": 1,
    }  # fmt: skip
    task = {**own_task, **changes.pop("task", {})}
    return from_dict({**values, **changes, "task": task})
