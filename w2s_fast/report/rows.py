"""The rows that plot and page draw: supervisor, control, one student a loss, ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GREY, DARK = "#8b93a1", "#3f4754"
PALETTE = ("#3b76e1", "#e8743b", "#1f9d7a", "#a259d9", "#d64a7b", "#b58a12")


@dataclass(frozen=True)
class Row:
    """One model: its accuracy at each seed, and the PGR of a student.

    Attributes:
        name: What to call it.
        color: Hex colour, readable on light and dark ground.
        accuracies: By seed.
        pgrs: By seed, without the refused ones; empty for what is no student.
        pgr: Mean PGR with the ends of its interval; None if refused or no student.
        student: Whether it learned from weak labels with one of the losses.
    """

    name: str
    color: str
    accuracies: tuple[float, ...]
    pgrs: tuple[float, ...] = ()
    pgr: tuple[float, float, float] | None = None
    student: bool = False

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return sum(self.accuracies) / len(self.accuracies)


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows from the floor up to the ceiling."""
    runs = results["runs"]
    # floor and ceiling are the same in the runs of every loss
    first = [r for r in runs if r["loss"] == runs[0]["loss"]]
    found = [Row("weak supervisor", GREY, tuple(r["weak"] for r in first))]
    if results["controls"]:
        accuracies = tuple(c["accuracy"] for c in results["controls"])
        found.append(Row("control: no pretraining", "#b9a07a", accuracies))
    for i, s in enumerate(results["summary"]):
        mine = [r for r in runs if r["loss"] == s["loss"]]
        pgr = None
        if s["pgr_mean"] is not None:
            pgr = (s["pgr_mean"], s["pgr_low"], s["pgr_high"])
        found.append(
            Row(
                f"student · {s['loss']}",
                PALETTE[i % len(PALETTE)],
                tuple(r["student"] for r in mine),
                tuple(r["pgr"] for r in mine if r["pgr"] is not None),
                pgr,
                student=True,
            )
        )
    return [*found, Row("ceiling", DARK, tuple(r["ceiling"] for r in first))]
