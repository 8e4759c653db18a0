"""The table of docs/deception.md, from the committed results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.harness.row_files import RESULTS
from w2s_fast.report.deception_rows import DECEPTION_HEADS, deception_cells
from w2s_fast.report.model_rows import level_text

FILE = RESULTS / "deception.json"
PAGE = "docs/deception.md"
_HEADS = ("experiment", "pairs", "weak", "ceiling", *DECEPTION_HEADS)


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text."""
    return {"deception": lambda _: _block()}


def _block() -> str:
    if not FILE.exists():
        return "No rows have been recorded yet: `python -m bench deception --record`.\n"
    return table(json.loads(FILE.read_text()))


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table, a line per student under a conflict."""
    rule = ["---", *["---:"] * 3, "---", *["---:"] * (len(_HEADS) - 5)]
    lines = [_line(_HEADS), _line(rule)]
    for name, experiment in results["experiments"].items():
        means = [f"{_mean(experiment['runs'], model):.3f}" for model in ("weak", "ceiling")]
        for i, row in enumerate(experiment["deception"]):
            sizes = " / ".join(map(str, experiment["pairs"]))
            first = [name, sizes, *means] if i == 0 else [""] * 4
            student, *cells = deception_cells(row)
            lines.append(_line([*first, f"`{student}`".replace("|", r"\|"), *cells]))
    facts = results["environment"]
    seeds = {run["seed"] for e in results["experiments"].values() for run in e["runs"]}
    return (
        "\n".join(lines) + f"\n\n{len(seeds)} seeds; pairs are those of weak / transfer / test "
        f"split; intervals at {level_text()}. {facts['cpu']}, torch {facts['torch']}, commit "
        f"{facts['git_sha']}.\n"
    )


def _mean(runs: Sequence[Mapping[str, Any]], model: str) -> float:
    return float(np.mean([run[model] for run in runs]))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
