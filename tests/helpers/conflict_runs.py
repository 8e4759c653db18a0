"""Runs of seconds with students under a conflict: pairs whose better answer is the polite one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig, from_dict

BOW = {"source": "bow"}
TRAIN = {"epochs": 4, "lr": 0.1, "batch_size": 16, "timeout_s": 120}
METHODS = ("naive", "explicit_conflict:alpha=4", "implicit_conflict")


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_polite(path: Path, n: int = 300) -> Path:
    """Write pairs of a polite and a rude answer; one in five is labelled the other way round."""
    g = np.random.default_rng(0)
    rows = []
    for i in range(n):
        words = [str(g.choice(["thanks", "please", "gladly"])), str(g.choice(["no", "never"]))]
        if g.random() < 0.2:
            words.reverse()
        good, bad = (f"{word} {g.integers(9)}" for word in words)
        rows.append({"prompt": f"question {i}:", "chosen": good, "rejected": bad})
    return write_rows(path, rows)


def write_opposite(path: Path, n: int = 200, first: int = 1000) -> Path:
    """Write pairs of other prompts whose better answer is the rude one."""
    rows = [
        {"prompt": f"question {first + i}:", "chosen": f"never {i % 9}", "rejected": f"please {i}"}
        for i in range(n)
    ]
    return write_rows(path, rows)


def conflict_run(folder: Path, **changes: Any) -> RunConfig:
    """Return a run of reward models on these pairs."""
    task = {
        "name": "pairs", "path": str(write_polite(folder / "polite.jsonl")),
        "conflict_path": str(write_opposite(folder / "opposite.jsonl")),
        "n_weak": 60, "n_transfer": 100, "n_test": 100, **changes.pop("task", {}),
    }  # fmt: skip
    values = {
        "weak": BOW, "student": BOW, "weak_train": {**TRAIN, "epochs": 1}, "student_train": TRAIN,
        "losses": ["xent"], "methods": list(METHODS), "seeds": [0], "workers": 1, "threads": 1,
        "output_dir": str(folder / "out"),
    }  # fmt: skip
    return from_dict({**values, **changes, "task": task})
