"""Arrange what methods made of the items of a generation task for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def label_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line for every selection of texts: how many items met each fate, over all runs.

    A report of a method has numbers, lists of ids, which are counted, blocks of these, and texts,
    which name the selection.
    """
    totals: dict[tuple[str, str], dict[str, float]] = {}
    for row in results.get("text_labels", ()):
        step = row["stage"].replace(f"/{row['seed']}/", "/", 1)
        texts = (f", {k} {v}" for k, v in row["report"].items() if isinstance(v, str))
        own = totals.setdefault((row["name"] + "".join(texts), step), {})
        for name, count in _counts(row["report"]):
            own[name] = own.get(name, 0) + count
    return [
        f"{name}: " + ", ".join(f"{_number(n)} {fate}" for fate, n in counts.items())
        for (name, _), counts in totals.items()
        if counts
    ]


def _counts(report: Mapping[str, Any], block: str = "") -> Iterator[tuple[str, float]]:
    for key, value in report.items():
        name = f"{block}{key.removeprefix('n_').replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _counts(value, f"{name}: ")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, len(value)
        elif isinstance(value, int | float):
            yield name, value


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.3f}"
