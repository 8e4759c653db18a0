"""The table of docs/delta_learning.md, from the committed rows of ``python -m bench delta``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.delta.command import load
from w2s_fast.metrics import Runs, mean_interval

PAGE = "docs/delta_learning.md"
MODELS = {
    "stronger": "generator of the chosen texts",
    "weaker": "generator of the rejected texts",
    "student": "student",
    "pairs": "student after the pairs",
    "reversed": "student after the reversed pairs",
    "chosen": "student after finetuning on the chosen texts",
}
_NONE = "No rows have been recorded yet: `python -m bench delta --record`.\n"
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/delta_learning.md."""
    return {"delta": lambda _: table(load())}


def table(rows: Sequence[Row]) -> str:
    """Return the table: a line per model, with the difference to the student and its interval."""
    if not rows:
        return _NONE
    bases = sorted({row["base"] for row in rows})
    own = [[row for row in rows if row["base"] == base] for base in bases]
    lines = [
        "| model | accuracy | minus the student | 95 % interval |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, title in MODELS.items():
        accuracy = np.array([[[row[name], row["student"]] for row in group] for group in own])
        change, interval = "", ""
        if name != "student":
            change = f"{(accuracy[..., 0] - accuracy[..., 1]).mean():+.3f}"
            bounds = mean_interval(Runs(accuracy), np.array([1.0, -1.0]))
            interval = "–" if bounds is None else f"{bounds[0]:+.3f} to {bounds[1]:+.3f}"
        lines.append(f"| {title} | {accuracy[..., 0].mean():.3f} | {change} | {interval} |")
    return "\n".join(lines) + f"\n\n{_made_by(rows, len(bases))}\n"


def _made_by(rows: Sequence[Row], n_bases: int) -> str:
    first, setting = rows[0], rows[0]["setting"]
    pairs = [row["counts"]["paired"] for row in rows]
    better = sum(row["pairs"] > row["student"] for row in rows)
    return (
        f"{n_bases} bases with {len(rows) // n_bases} seeds each; {setting['n_prompts']} prompts, "
        f"{min(pairs)} to {max(pairs)} pairs, {setting['n_test']} test items a seed. The pairs "
        f"raise the accuracy in {better} of {len(rows)} runs. {first['cpu']}, torch "
        f"{first['torch']}, commit {first['git_sha']}."
    )
