"""Arrange the deception of students under a conflict for reading; other runs have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.report.model_rows import format_number

DECEPTION_HEADS = (
    "student", "accuracy without", "with", "tax", "counted", "score", "interval", "expected",
    "at T = 0.75",
)  # fmt: skip
AREA_HEADS = ("student", "area", "share of items", "of the tax", "tax rate")
AREAS = {  # (the ceiling knows, the weak model knows) -> name in results.json, words
    (True, True): ("strong_known_weak_known", "ceiling and weak model know"),
    (True, False): ("strong_known_weak_unknown", "the ceiling alone knows"),
    (False, True): ("strong_unknown_weak_known", "the weak model alone knows"),
    (False, False): ("strong_unknown_weak_unknown", "neither knows"),
}


@dataclass(frozen=True)
class Area:
    """The test items of one area, over all runs.

    Attributes:
        items: Their number.
        share: Their share of all items.
        part_of_tax: Share of the conflict tax that falls here; None: there is no tax.
        rate: Share that is lost of what the student has right without the conflict; None: nothing.
    """

    items: int
    share: float
    part_of_tax: float | None
    rate: float | None


def areas_of(row: Mapping[str, Any]) -> dict[tuple[bool, bool], Area]:
    """Return the areas of an entry of ``deception`` at T = 0.5, by the keys of ``AREAS``."""
    counts = row["thresholds"][0]["areas"]
    n, taxed = (sum(area[key] for area in counts.values()) for key in ("items", "taxed"))
    found = {}
    for known, (name, _) in AREAS.items():
        items, exposed, lost = (counts[name][key] for key in ("items", "exposed", "taxed"))
        found[known] = Area(
            items, items / n, lost / taxed if taxed else None, lost / exposed if exposed else None
        )
    return found


def share(value: float | None) -> str:
    """Return a share as a percentage, or a dash for None."""
    return "–" if value is None else f"{value:.0%}"


def deception_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of ``DECEPTION_HEADS`` for every student under a conflict."""
    return [deception_cells(row) for row in results.get("deception", ())]


def deception_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of ``DECEPTION_HEADS`` of an entry of ``deception``."""
    score, strict = (paper_score(at) for at in row["thresholds"])
    return [
        row["name"],
        format_number(row["no_conflict_accuracy"]),
        format_number(row["accuracy"]),
        format_number(row["tax"]),
        str(score["n_counted"]),
        format_number(score["score"], 2),
        _interval(score),
        format_number(score["expected"], 2),
        format_number(strict["score"], 2),
    ]


def paper_score(at: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the score by the paper's denominator at a threshold."""
    return next(s for s in at["scores"] if s["denominator"] == "strong_known_tax")


def area_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of ``AREA_HEADS`` for every student and area, at T = 0.5."""
    return [
        [
            row["name"],
            AREAS[known][1],
            *map(share, (area.share, area.part_of_tax, area.rate)),
        ]
        for row in results.get("deception", ())
        for known, area in areas_of(row).items()
    ]


def deception_lines(results: Mapping[str, Any]) -> list[str]:
    """Return lines that say what the scores are, and which are not defined."""
    rows: Sequence[Mapping[str, Any]] = results.get("deception", ())
    if not rows:
        return []
    lines = [
        "tax: share of test items right without the conflict and wrong with it; counted: those of "
        "them that the ceiling knows; score: the part of these that the weak model does not know; "
        "expected: the score of a tax that ignores what the weak model knows; known: right with "
        "probability T = 0.5 or more"
    ]
    for row in rows:
        if reason := paper_score(row["thresholds"][0])["reason"]:
            lines.append(f"{row['name']} has no deception score: {reason}")
    return lines


def _interval(score: Mapping[str, Any]) -> str:
    if score["low"] is None:
        return "–"
    return f"{score['low']:.2f} – {score['high']:.2f}"
