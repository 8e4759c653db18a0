"""The tables of docs/labeling.md, from the committed rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.labeling.command import load
from w2s_fast.metrics import Runs, mean_interval

PAGE = "docs/labeling.md"
_NONE = "No rows have been recorded yet: `python -m bench labeling --record`.\n"
_HEADS = (
    "labels from", "features", "functions", "coverage", "covered rows: accuracy",
    "all rows: accuracy", "95 %", "− few-shot", "95 %", "majority vote",
)  # fmt: skip
_PLAIN = (
    "constant",
    "few-shot",
    "affinity",
    "affinity, 10 clusters",
)  # no functions, so no coverage of their own
Row = Mapping[str, Any]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/labeling.md."""
    return {name: lambda _, name=name: table(load(), name) for name in ("youtube", "sms", "sst2")}


def table(rows: Sequence[Row], data: str) -> str:
    """Return the table of a data set: means over seeds, with t intervals."""
    rows = [row for row in rows if row["data"] == data]
    if not rows:
        return _NONE
    by: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by.setdefault((row["features"], row["method"]), []).append(row)
    lines = [_line(_HEADS), _line(["---", "---", *["---:"] * 8])]
    base = {f: _column(group, "accuracy") for (f, m), group in by.items() if m == "few-shot"}
    best = max(base.values(), key=np.mean)
    lines += [_cells(f, m, group, base.get(f, best)) for (f, m), group in by.items()]
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    size = f"{first['n']} rows, {first['labeled']} labeled ones beside them, {seeds} seeds"
    return "\n".join(lines) + f"\n\n{size}, commit {first['git_sha']}.\n"


def _cells(features: str, method: str, group: Sequence[Row], base: np.ndarray) -> str:
    accuracy = _column(group, "accuracy")
    plain = method in _PLAIN
    return _line(
        [
            method,
            features.replace("none", "–"),
            "–" if plain else f"{_column(group, 'functions').mean():.0f}",
            "–" if plain else f"{_column(group, 'coverage').mean():.3f}",
            "–" if plain else f"{_column(group, 'covered_accuracy').mean():.3f}",
            f"{accuracy.mean():.3f}",
            _interval(accuracy),
            "–" if method == "few-shot" else f"{(accuracy - base).mean():+.3f}",
            "–" if method == "few-shot" else _interval(accuracy - base, "+.3f"),
            "–" if plain else f"{_column(group, 'majority_accuracy').mean():.3f}",
        ]
    )


def _column(group: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in sorted(group, key=lambda row: row["seed"])])


def _interval(values: np.ndarray, form: str = ".3f") -> str:
    """Return the t interval of a mean over seeds."""
    ends = mean_interval(Runs(values[None, :, None]), np.ones(1))
    return "–" if ends is None else f"{ends[0]:{form}} – {ends[1]:{form}}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
