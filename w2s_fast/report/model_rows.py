"""Arrange a run's results for reading: a row per model, notes, and number formats.

Terminal table, figure and page all show what this module returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.metrics import LEVEL, MIN_DRAWS

GREY, DARK = "#666e7b", "#3f4754"
PALETTE = ("#2f68d0", "#b9541c", "#147d5f", "#8e45c9", "#c2386b", "#8a6608")
UNBOUNDED = "unbounded"  # in place of an interval that does not end
NOT_REPORTED = "not reported"  # in place of a PGR whose weak-ceiling gap is too small


@dataclass(frozen=True)
class ModelRow:
    """The accuracy of one model at each seed, and the PGR of a student.

    Attributes:
        name: The model's name.
        color: Hex colour; text in it is readable on white.
        accuracies: By seed.
        pgrs: By seed, without those not reported; empty unless a student.
        pgr: PGR of the mean accuracies and the ends of its interval, infinite if unbounded and
            equal to it without an interval; None if not reported or not a student.
        interval: The interval as text; empty without one.
        student: Whether the model learned from weak labels.
    """

    name: str
    color: str
    accuracies: tuple[float, ...]
    pgrs: tuple[float, ...] = ()
    pgr: tuple[float, float, float] | None = None
    interval: str = ""
    student: bool = False

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return sum(self.accuracies) / len(self.accuracies)


# Scores of a model that only some tasks have, with their titles in tables.
_FURTHER_SCORES = {
    "worst_group": "worst group",
    "ood": "OOD",
    "ood_worst_group": "OOD, worst group",
}


def further_scores(results: Mapping[str, Any]) -> dict[str, str]:
    """Return name and title of the scores of groups and shifted items that these results have."""
    first = results["summary"][0]
    return {k: v for k, v in _FURTHER_SCORES.items() if first.get(f"student_{k}") is not None}


def model_rows(results: Mapping[str, Any]) -> list[ModelRow]:
    """Return the rows from floor to ceiling: weak supervisor, control, students, ceilings."""
    runs = results["runs"]
    first = [r for r in runs if r["name"] == runs[0]["name"]]  # every student has the same floor
    rows = [ModelRow("weak supervisor", GREY, tuple(r["weak"] for r in first))]
    if results.get("controls"):
        accuracies = tuple(c["accuracy"] for c in results["controls"])
        rows.append(ModelRow("control: no pretraining", "#876a35", accuracies))
    for i, summary in enumerate(results["summary"]):
        color = PALETTE[i % len(PALETTE)]
        rows.append(_student_row(summary, runs, color))
    return [*rows, *_ceiling_rows(runs)]


def _student_row(
    summary: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], color: str
) -> ModelRow:
    own = [r for r in runs if r["name"] == summary["name"]]
    pgr, interval = None, ""
    if summary["pgr_mean"] is not None:
        ends = pgr_ends(summary)
        pgr = (summary["pgr_mean"], *(ends or (summary["pgr_mean"],) * 2))
        interval = f"[{format_interval(summary).replace(' – ', ', ')}]" if ends else ""
    return ModelRow(
        f"student · {summary['name']}",
        color,
        tuple(r["student"] for r in own),
        tuple(r["pgr"] for r in own if r["pgr"] is not None),
        pgr,
        interval,
        student=True,
    )


def pgr_ends(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the ends of a row's PGR interval, infinite if it is unbounded; None: no interval."""
    if row.get("pgr_unbounded"):
        return -math.inf, math.inf
    return None if row["pgr_low"] is None else (row["pgr_low"], row["pgr_high"])


def _ceiling_rows(runs: Sequence[Mapping[str, Any]]) -> list[ModelRow]:
    """Return a row for each distinct ceiling, the plain one last."""
    accuracies: dict[str, dict[int, float]] = {}
    for r in runs:
        accuracies.setdefault(r["ceiling_name"], {})[r["seed"]] = r["ceiling"]
    return [
        ModelRow(ceiling_title(name), DARK, tuple(accuracies[name].values()))
        for name in sorted(accuracies, reverse=True)
    ]


def ceiling_title(student: str) -> str:
    """Return the title of a ceiling; ``student`` is empty for the plain one."""
    return f"ceiling · {student}" if student else "ceiling"


def ceilings(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a summary row for each distinct ceiling, by title; the plain one last."""
    summaries = {s["ceiling_name"]: s for s in results["summary"]}
    return {ceiling_title(name): summaries[name] for name in sorted(summaries, reverse=True)}


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return lines on doubts, bases, last bits, true labels, and PGRs that are not reported."""
    reasons = {r["seed"]: r["refused"] for r in results["runs"] if r["refused"]}
    lines = [f"base {name} failed: {why}" for name, why in results.get("failed", {}).items()]
    lines += results.get("warnings", ())
    lines += _base_lines(results)
    lines += [
        f"{s['name']}: standard deviation of accuracy {format_number(s['student_sd'])} over runs, "
        f"{format_number(s['rounding_sd'])} over the last bits of the initial weights"
        for s in results["summary"]
        if s.get("rounding_sd") is not None
    ]
    lines += [f"{g['name']} used true labels: {g['use']}" for g in results.get("gold", ())]
    lines += [f"seed {seed}: {why}" for seed, why in sorted(reasons.items())]
    if len(results["runs"]) > len(results["summary"]):
        overall = dict.fromkeys(s["refused"] for s in results["summary"] if s["refused"])
        lines += [f"all seeds: {why}" for why in overall]
    return lines


def weak_label_line(results: Mapping[str, Any]) -> str:
    """Return one line: how many of the labels that students learned are right; empty if unknown."""
    known = (r for r in results["runs"] if r.get("weak_label_accuracy") is not None)
    by_seed = {r["seed"]: r["weak_label_accuracy"] for r in known}
    if not by_seed:
        return ""
    mean = format_number(sum(by_seed.values()) / len(by_seed))
    if len(by_seed) == 1:
        return f"weak labels of the transfer set: accuracy {mean}"
    low, high = (format_number(end(by_seed.values())) for end in (min, max))
    return f"weak labels of the transfer set: accuracy {mean} ({low} – {high} by seed)"


def _base_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line with the seeds of each base, if there are several."""
    seeds: dict[str, dict[int, None]] = {}
    for row in results["runs"]:
        seeds.setdefault(row.get("base", ""), {})[row["seed"]] = None
    if len(seeds) < 2:
        return []
    return [f"base {name}: seeds {', '.join(map(str, own))}" for name, own in seeds.items()]


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a fixed-point number, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def format_interval(row: Mapping[str, Any]) -> str:
    """Return the ends of a row's PGR interval, or a dash."""
    ends = pgr_ends(row)
    if ends is None:
        return "–"
    return UNBOUNDED if math.isinf(ends[0]) else f"{ends[0]:.2f} – {ends[1]:.2f}"


def difference_cells(row: Mapping[str, Any]) -> list[str]:
    """Return difference, interval, p and Holm's p of an entry of ``differences``, as text."""
    interval = "–" if row["low"] is None else f"{row['low']:+.3f} – {row['high']:+.3f}"
    p = ["–" if row[k] is None else f"{row[k]:.2g}" for k in ("p", "p_holm")]
    return [f"{row['difference']:+.3f}", interval, *p]


def level_text() -> str:
    """Return the level of all intervals, such as "95 %"."""
    return f"{100 * LEVEL:g} %"


def interval_note(results: Mapping[str, Any]) -> str:
    """Return one line that says what the intervals generalize over."""
    design = results.get("design")
    if design is None:  # results of 0.2.0
        return f"Intervals ({level_text()}) resample seeds and test items."
    bases, seeds = design["bases"], count(design["seeds"], "seed")
    given = "this base" if bases == 1 else f"these {bases} bases"
    if "bases" in design["over"]:
        return f"Intervals ({level_text()}) are t over {runs_text(results)}."
    if design["over"]:
        return f"Intervals ({level_text()}) are t over {seeds}, conditional on {given}."
    if bases == design["seeds"] == 1:
        return f"Intervals ({level_text()}) resample the test items of one run, not seeds or bases."
    return f"No intervals: {seeds} of {given} are too few, {MIN_DRAWS} are needed."


def runs_text(results: Mapping[str, Any]) -> str:
    """Return the number of runs, such as "3 seeds" or "4 bases with 3 seeds each"."""
    n_seeds = len({run["seed"] for run in results["runs"]})
    design = results.get("design") or {"bases": 1, "seeds": n_seeds}
    seeds = count(design["seeds"], "seed")
    return seeds if design["bases"] == 1 else f"{design['bases']} bases with {seeds} each"


def count(n: int, word: str) -> str:
    """Return a number and its noun, such as "3 seeds"."""
    return f"{n} {word}{'s' * (n != 1)}"


def class_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return for each class its name and its rows in the weak, transfer and test split.

    A range is shown where seeds differ; the list is empty for results of 0.2.0.
    """
    seeds = list(results.get("provenance", {}).get("data", {}).values())
    splits = ("weak", "transfer", "test")
    return [
        [name, *(_range([seed[split].get(name, 0) for seed in seeds]) for split in splits)]
        for name in (seeds[0]["weak"] if seeds else ())
    ]


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} – {high}"
