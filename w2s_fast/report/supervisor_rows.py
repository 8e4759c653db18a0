"""Arrange the scores of many supervisors for reading; runs of one weak model have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w2s_fast.report.model_rows import format_number

SUPERVISOR_HEADS = ("supervisor", "coverage", "accuracy where it votes", "estimated accuracy")


def supervisor_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of ``SUPERVISOR_HEADS`` for every supervisor, means over runs.

    Learned functions may differ from seed to seed; each name has the mean over its own runs.
    """
    own: dict[str, list[Mapping[str, Any]]] = {}
    for row in results.get("supervisors", ()):
        for source in row["sources"]:
            own.setdefault(source["name"], []).append(source)
    keys = ("coverage", "accuracy", "estimated_accuracy")
    return [
        [name, *(format_number(_mean([s[key] for s in sources])) for key in keys)]
        for name, sources in own.items()
    ]


def supervisor_lines(results: Mapping[str, Any]) -> list[str]:
    """Return lines on coverage and accuracy of the label model, and on dependent supervisors."""
    rows = results.get("supervisors", ())
    if not rows:
        return []
    lines = [_split_line(rows, split) for split in ("transfer", "test")]
    dropped = dict.fromkeys(name for row in rows for name in row["dropped"])
    if dropped:
        lines.append(f"the gate leaves out {', '.join(dropped)} in some run or in all")
    refuted = [row for row in rows if row["independence"] and row["independence"]["refuted"]]
    if refuted:
        pairs = max(row["independence"]["pairs"] for row in refuted)
        lines.append(
            f"supervisors depend on each other in {len(refuted)} of {len(rows)} runs (up to "
            f"{pairs} pairs); label_model: tree_dawid_skene models pairs"
        )
    return lines


def _split_line(rows: Sequence[Mapping[str, Any]], split: str) -> str:
    def mean(key: str) -> str:
        return format_number(_mean([row[split][key] for row in rows]))

    return (
        f"supervisors vote on {mean('covered')} of the {split} items; their posterior is right on "
        f"{mean('covered_accuracy')} of those and on {mean('accuracy')} of all, the largest class "
        f"on {mean('constant')}"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
