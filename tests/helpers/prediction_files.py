"""A folder with the predictions of a weak model, two students and a ceiling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ACCURACY = {"weak": 0.6, "student-xent": 0.75, "student-logconf": 0.8, "ceiling": 0.9}
N = 400


def draw(seed: int, models: Mapping[str, float] | None = None, n: int = N) -> dict[str, Any]:
    """Return ids, gold and, by model, P(class 1) of ``n`` items; accuracies are those given."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, n)
    probs = {}
    for name, accuracy in (models or ACCURACY).items():
        right = rng.permutation(n) < round(accuracy * n)
        confidence = rng.uniform(0.51, 0.99, n)
        probs[name] = np.where(right == (gold == 1), confidence, 1 - confidence)
    return {"ids": [f"item {i}" for i in range(n)], "gold": gold, "probs": probs}


def write_csv(
    path: Path, ids: Sequence[str], gold: Sequence[int], probs: Sequence[float], head: str = "prob"
) -> None:
    """Write the columns id, gold and P(class 1)."""
    lines = [f"{i},{g},{p!r}" for i, g, p in zip(ids, gold, map(float, probs), strict=True)]
    path.write_text("\n".join([f"id,gold,{head}", *lines]) + "\n")


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_seed(folder: Path, seed: int | None, drawn: Mapping[str, Any]) -> None:
    """Write the file of every model of a seed, named as ``report --from`` expects."""
    suffix = "" if seed is None else f".seed{seed}"
    for name, probs in drawn["probs"].items():
        write_csv(folder / f"{name}{suffix}.csv", drawn["ids"], drawn["gold"], probs)


def write_folder(folder: Path, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Write all models of several seeds, each with test items of its own."""
    for seed in seeds:
        drawn = draw(seed)
        write_seed(folder, seed, drawn | {"ids": [f"{seed}/{i}" for i in drawn["ids"]]})
