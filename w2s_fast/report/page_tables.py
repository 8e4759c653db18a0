"""The tables of the page as plain values, and the texts beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.report.deception_rows import (
    AREA_HEADS,
    DECEPTION_HEADS,
    area_rows,
    deception_lines,
    deception_rows,
)
from w2s_fast.report.diagnostic_rows import (
    MISFIT_HEADS,
    WEAK_LABEL_HEADS,
    diagnostic_lines,
    misfit_rows,
    weak_label_rows,
)
from w2s_fast.report.merge_rows import SWEEP_HEADS, merge_lines, sweep_rows
from w2s_fast.report.model_rows import (
    NOT_REPORTED,
    ceilings,
    class_rows,
    format_interval,
    format_number,
    further_scores,
    level_text,
    pgr_ends,
)
from w2s_fast.report.supervisor_rows import SUPERVISOR_HEADS, supervisor_lines, supervisor_rows


@dataclass(frozen=True)
class Table:
    """A table: its name, the heads of its columns, and its cells; the first of a row is a name."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Best:
    """The student with the largest PGR, in words."""

    name: str
    weak: str
    student: str
    ceiling: str
    verb: str
    share: str
    pgr: str
    interval: str


def best_student(results: Mapping[str, Any]) -> Best | None:
    """Return the student with the largest PGR; None if no PGR is reported."""
    reported = [s for s in results["summary"] if s["pgr_mean"] is not None]
    if not reported:
        return None
    best = max(reported, key=lambda s: s["pgr_mean"])
    ends = pgr_ends(best)
    interval = ""
    if ends is not None and not math.isinf(ends[0]):
        interval = f"{level_text()} interval {ends[0]:.0%} to {ends[1]:.0%}"
    return Best(
        name=best["name"],
        weak=format_number(best["weak"]),
        student=format_number(best["student"]),
        ceiling=format_number(best["ceiling"]),
        verb="recovered" if best["pgr_mean"] >= 0 else "lost",
        share=f"{abs(best['pgr_mean']):.0%}",
        pgr=f"{best['pgr_mean']:.2f}",
        interval=interval,
    )


def means_table(results: Mapping[str, Any]) -> Table:
    """Return the means over seeds: floor, students, ceilings."""
    parts = ("all", "weak_right", "weak_wrong")
    further = further_scores(results)
    head = ["model", "accuracy", "PGR", "interval", "balanced", "F1", "AUROC", *further.values(),
            "agreement, all", "supervisor right", "supervisor wrong"]  # fmt: skip
    names = ("balanced", "f1", "auroc", *further)
    body = [_means_row("weak supervisor", results["summary"][0], "weak", names)]
    for s in results["summary"]:
        pgr = NOT_REPORTED if s["pgr_mean"] is None else f"{s['pgr_mean']:.2f}"
        agreement = [format_number(s["agreement"][part]) for part in parts]
        body.append(
            _means_row(
                f"student · {s['name']}", s, "student", names, [pgr, format_interval(s)], agreement
            )
        )
    body += [_means_row(title, row, "ceiling", names) for title, row in ceilings(results).items()]
    return Table("Means over seeds", head, body)


def _means_row(
    title: str,
    row: Mapping[str, Any],
    model: str,
    names: Sequence[str],
    pgr: Sequence[str] = ("–", "–"),
    agreement: Sequence[str] = ("–", "–", "–"),
) -> list[str]:
    scores = [row.get(f"{model}_{name}") for name in names]
    return [title, format_number(row[model]), *pgr, *map(format_number, scores), *agreement]


def runs_table(results: Mapping[str, Any]) -> Table:
    """Return every run."""
    models = ("weak", "student", "ceiling")
    head = ["method", "seed", *models, "PGR", "interval over items", "gap ± se"]
    body = [
        [
            r["name"],
            str(r["seed"]),
            *(format_number(r[model]) for model in models),
            NOT_REPORTED if r["pgr"] is None else f"{r['pgr']:.2f}",
            format_interval(r),
            f"{format_number(r['gap'])} ± {format_number(r['gap_se'])}",
        ]
        for r in results["runs"]
    ]
    return Table("Every run", head, body)


def diagnostics(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return tables and lines of the diagnostics; None for results of 0.2.0."""
    misfit, weak_labels = misfit_rows(results), weak_label_rows(results)
    if not misfit:
        return None
    tables = [Table("Misfit", MISFIT_HEADS, misfit)]
    tables += [Table("Weak labels", WEAK_LABEL_HEADS, weak_labels)] if weak_labels else []
    return {"tables": tables, "lines": diagnostic_lines(results)}


def deception(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return tables and lines of students under a conflict; None without any."""
    if not results.get("deception"):
        return None
    return {
        "lines": deception_lines(results),
        "tables": [
            Table("Deception", DECEPTION_HEADS, deception_rows(results)),
            Table("Areas of knowledge", AREA_HEADS, area_rows(results)),
        ],
    }


def many_supervisors(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return table and lines of many supervisors; None for results of one weak model."""
    rows = supervisor_rows(results)
    if not rows:
        return None
    table = Table("Supervisors", SUPERVISOR_HEADS, rows)
    return {"table": table, "lines": supervisor_lines(results)}


def merged(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return tables and lines of students made of the weights of others; None without any."""
    if not results.get("merged"):
        return None
    rows = sweep_rows(results)
    tables = [Table("Interpolation with the initial weights", SWEEP_HEADS, rows)] if rows else []
    return {"tables": tables, "lines": merge_lines(results)}


def classes_table(results: Mapping[str, Any]) -> Table:
    """Return the rows of every class by split."""
    return Table("Classes and rows", ["class", "weak", "transfer", "test"], class_rows(results))


def facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Return machine, commit and versions, as far as they are known."""
    known = results.get("provenance", {})
    lines: dict[str, str] = {}
    if machine := known.get("machine"):
        cuda = machine["cuda"] or "no CUDA"
        lines["machine"] = f"{machine['cpu']}, {machine['cores']} cores, {cuda}"
        lines["system"] = machine["system"]
    if backends := known.get("backends"):
        lines["kernels"] = ", ".join(f"{k} {v}" for k, v in backends.items() if v)
    if "git" in known:
        git, commit = known["git"], "not a git checkout"
        if git:
            commit = git["commit"][:12] + (" with local changes" if git["dirty"] else "")
        lines["commit"] = commit
    if versions := known.get("versions"):
        lines["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items() if v)
    return lines


def stages_table(results: Mapping[str, Any]) -> Table:
    """Return the stages with folder, digest and seconds."""
    rows = [
        [name, s["folder"], s["digest"][:16], format_number(s["seconds"], 1),
         "yes" if s["reused"] else ""]
        for name, s in results.get("provenance", {}).get("stages", {}).items()
    ]  # fmt: skip
    return Table("Stages and digests", ["stage", "folder", "digest", "seconds", "reused"], rows)
