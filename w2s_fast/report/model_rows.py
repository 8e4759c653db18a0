"""Arrange a run's results for reading: a row per model, notes, and number formats.

Terminal table, figure and page all show what this module returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GREY, DARK = "#666e7b", "#3f4754"
PALETTE = ("#2f68d0", "#b9541c", "#147d5f", "#8e45c9", "#c2386b", "#8a6608")
NOT_REPORTED = "not reported"  # in place of a PGR whose weak-ceiling gap is too small


@dataclass(frozen=True)
class ModelRow:
    """The accuracy of one model at each seed, and the PGR of a student.

    Attributes:
        name: The model's name.
        color: Hex colour; text in it is readable on white.
        accuracies: By seed.
        pgrs: By seed, without those not reported; empty unless a student.
        pgr: Mean PGR and the ends of its interval; None if not reported or not a student.
        student: Whether the model learned from weak labels.
    """

    name: str
    color: str
    accuracies: tuple[float, ...]
    pgrs: tuple[float, ...] = ()
    pgr: tuple[float, float, float] | None = None
    student: bool = False

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return sum(self.accuracies) / len(self.accuracies)


def model_rows(results: Mapping[str, Any]) -> list[ModelRow]:
    """Return the rows from floor to ceiling: weak supervisor, control, students, ceilings."""
    runs = results["runs"]
    first = [r for r in runs if r["name"] == runs[0]["name"]]  # every student has the same floor
    rows = [ModelRow("weak supervisor", GREY, tuple(r["weak"] for r in first))]
    if results["controls"]:
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
    pgr = None
    if summary["pgr_mean"] is not None:
        pgr = (summary["pgr_mean"], summary["pgr_low"], summary["pgr_high"])
    return ModelRow(
        f"student · {summary['name']}",
        color,
        tuple(r["student"] for r in own),
        tuple(r["pgr"] for r in own if r["pgr"] is not None),
        pgr,
        student=True,
    )


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
    """Return a line for each use of true labels and for each reason why a PGR is not reported."""
    reasons = {r["seed"]: r["refused"] for r in results["runs"] if r["refused"]}
    lines = [f"{g['name']} used true labels: {g['use']}" for g in results["gold"]]
    lines += [f"seed {seed}: {why}" for seed, why in sorted(reasons.items())]
    if len(results["provenance"]["config"]["seeds"]) > 1:
        overall = dict.fromkeys(s["refused"] for s in results["summary"] if s["refused"])
        lines += [f"all seeds: {why}" for why in overall]
    return lines


def weak_label_line(results: Mapping[str, Any]) -> str:
    """Return one line: how many of the labels that students learned are right."""
    by_seed = {r["seed"]: r["weak_label_accuracy"] for r in results["runs"]}
    mean = format_number(sum(by_seed.values()) / len(by_seed))
    if len(by_seed) == 1:
        return f"weak labels of the transfer set: accuracy {mean}"
    low, high = (format_number(end(by_seed.values())) for end in (min, max))
    return f"weak labels of the transfer set: accuracy {mean} ({low} – {high} by seed)"


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a fixed-point number, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def format_interval(row: Mapping[str, Any]) -> str:
    """Return the ends of a row's PGR interval, or a dash."""
    if row["pgr_low"] is None:
        return "–"
    return f"{row['pgr_low']:.2f} – {row['pgr_high']:.2f}"


def class_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return for each class its name and its rows in the weak, transfer and test split.

    A range is shown where seeds differ; the list is empty for results of 0.2.0.
    """
    seeds = list(results["provenance"].get("data", {}).values())
    splits = ("weak", "transfer", "test")
    return [
        [name, *(_range([seed[split].get(name, 0) for seed in seeds]) for split in splits)]
        for name in (seeds[0]["weak"] if seeds else ())
    ]


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} – {high}"
