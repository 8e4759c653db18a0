"""The rows that plot and page draw: supervisor, control, the students, ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        student: Whether it learned from weak labels.
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
    first = [r for r in runs if r["name"] == runs[0]["name"]]  # the floor is the same in all
    found = [Row("weak supervisor", GREY, tuple(r["weak"] for r in first))]
    if results["controls"]:
        accuracies = tuple(c["accuracy"] for c in results["controls"])
        found.append(Row("control: no pretraining", "#b9a07a", accuracies))
    for i, s in enumerate(results["summary"]):
        mine = [r for r in runs if r["name"] == s["name"]]
        pgr = None
        if s["pgr_mean"] is not None:
            pgr = (s["pgr_mean"], s["pgr_low"], s["pgr_high"])
        found.append(
            Row(
                f"student · {s['name']}",
                PALETTE[i % len(PALETTE)],
                tuple(r["student"] for r in mine),
                tuple(r["pgr"] for r in mine if r["pgr"] is not None),
                pgr,
                student=True,
            )
        )
    return [*found, *_ceilings(runs)]


def _ceilings(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The ceiling of every way of training, the plain one last."""
    found: dict[str, dict[int, float]] = {}
    for r in runs:
        found.setdefault(r["ceiling_name"], {})[r["seed"]] = r["ceiling"]
    return [
        Row(f"ceiling · {name}" if name else "ceiling", DARK, tuple(found[name].values()))
        for name in sorted(found, reverse=True)
    ]
