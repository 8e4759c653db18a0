"""Arrange a run's diagnostics for reading; results of 0.2.0 have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w2s_fast.report.model_rows import format_number

MISFIT_HEADS = (
    "student", "disagreement", "squared misfit", "gain in Brier score", "KL(student ‖ weak)",
    "gain in NLL", "KL(weak ‖ student)",
)  # fmt: skip
WEAK_LABEL_HEADS = (
    "seed", "calibration", "cross-fitted accuracy", "ECE before", "ECE after", "ECE of noise",
    "NLL before", "NLL after", "overlap density",
)  # fmt: skip


def misfit_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of ``MISFIT_HEADS`` for every student, means over runs."""
    rows = []
    for summary in results["summary"]:
        if "misfit" in summary:
            misfit, gain = summary["misfit"], summary["gain"]
            values = (
                misfit["disagreement"], misfit["squared"], gain["brier"],
                misfit["kl_student_weak"], gain["nll"], misfit["kl_weak_student"],
            )  # fmt: skip
            rows.append([summary["name"], *map(format_number, values)])
    return rows


def weak_label_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of ``WEAK_LABEL_HEADS`` for every seed with such diagnostics."""
    rows = []
    for row in results.get("weak_labels", ()):
        calibration, overlap = row["calibration"], row["overlap"]
        cells = ["–"] * 7
        if calibration is not None:
            before, after = calibration["before"], calibration["after"] or {}
            values = (
                calibration["accuracy"], before["ece"], after.get("ece"), before["ece_noise"],
                before["nll"], after.get("nll"),
            )  # fmt: skip
            cells = [_rule(calibration), *map(format_number, values)]
        rows.append([
            str(row["seed"]), *cells, format_number(None if overlap is None else overlap["density"])
        ])  # fmt: skip
    return rows


def _rule(calibration: Mapping[str, Any]) -> str:
    return calibration["rule"] + ("" if calibration["applied"] else ", not applied")


def diagnostic_lines(results: Mapping[str, Any]) -> list[str]:
    """Return lines on the calibration of the weak labels, on trust models, and on students' fit."""
    rows = results.get("weak_labels", ())
    calibrations = [row["calibration"] for row in rows if row["calibration"] is not None]
    lines = [_calibration_line(calibrations)] if calibrations else []
    densities = [row["overlap"]["density"] for row in rows if row["overlap"] is not None]
    if known := [d for d in densities if d is not None]:
        lines.append(f"overlap density of the transfer set: {format_number(_mean(known))}")
    lines += [
        f"seed {row['seed']}: no overlap density: {row['overlap']['reason']}"
        for row in rows
        if row["overlap"] is not None and row["overlap"]["density"] is None
    ]
    return [*lines, *trust_lines(results), *alarm_lines(results)]


def _calibration_line(calibrations: Sequence[Mapping[str, Any]]) -> str:
    def change(score: str) -> str:
        ends = [
            None if any(c[end] is None for c in calibrations)
            else _mean([c[end][score] for c in calibrations])
            for end in ("before", "after")
        ]  # fmt: skip
        return " to ".join(map(format_number, ends))

    return (
        f"calibration of the weak labels ({_rule(calibrations[0])}): ECE {change('ece')}, NLL "
        f"{change('nll')}, cross-fitted on the weak split"
    )


def trust_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line per trust model: how well it tells right labels of the weak split from wrong
    ones."""
    return [
        f"{row['name']}, seed {row['seed']}: P(label right) has AUROC {row['auroc']:.3f} "
        f"({_ends(row['auroc_interval'])}; 0.5 knows nothing) and a gain in Brier score of "
        f"{row['brier_gain']:.3f} ({_ends(row['brier_gain_interval'])}) over a constant, "
        f"cross-fitted on {row['n_right']} right and {row['n_wrong']} wrong labels of the weak "
        "split"
        for row in results.get("trust", ())
    ]


def _ends(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f} – {interval[1]:.3f}"


def alarm_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line per student whose fit was recorded: when it starts to fit wrong weak labels."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for run in results["runs"]:
        if run.get("fit") is not None:
            runs.setdefault(run["name"], []).append(run)
    return [_alarm_line(name, own) for name, own in runs.items()]


def _alarm_line(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    alarms = [
        f"{run['fit']['alarm_step']} of {run['fit']['steps'][-1]} (seed {run['seed']})"
        for run in runs
        if run["fit"]["alarm_step"] is not None
    ]
    if not alarms:
        return f"{name}: no sign that the student fits errors of the weak labels"
    return f"{name} starts to fit errors of the weak labels at step {', '.join(alarms)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
