"""Arrange supervisor cards for reading: what is known of the weak labels before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w2s_fast.report.model_rows import format_number

_MOST_CLASSES = 4  # that a line names


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """Return a few lines on one supervisor, for the terminal.

    Args:
        card: Record of stage `supervisor_card`.
    """
    transfer, test = card["transfer"], card["test"]
    line = (
        f"supervisor: accuracy {format_number(transfer['accuracy'])} on the transfer set, "
        f"{format_number(test['accuracy'])} on the test set"
    )
    if calibration := transfer["calibration"]:
        line += f"; ECE {calibration['ece']:.3f} ({calibration['ece_noise']:.3f} by chance)"
    lines = [line]
    if card["balance"] and len(card["classes"]) <= _MOST_CLASSES:
        shares = balance_rows(card)
        classes = (f"{name} {true:.2f} true, {weak:.2f} weak" for name, true, weak in shares)
        lines.append(f"classes: {'; '.join(classes)}")
    lines += [probe_line(card["probe"])]
    if cost := cost_text(card["cost"]):
        lines.append(f"cost: {cost}")
    return lines


def probe_line(probe: Mapping[str, Any]) -> str:
    """Return one line: whether a probe predicts the supervisor's errors."""
    if probe["reason"] is not None:
        return f"no probe of its errors: {probe['reason']}"
    low, high = probe["auroc_interval"]
    verdict = "in part learnable" if probe["learnable"] else "random to this probe"
    return (
        f"errors: {verdict}; from {probe['features']} they are found with AUROC "
        f"{probe['auroc']:.3f} ({low:.3f} – {high:.3f}; 0.5 is chance), accuracy "
        f"{probe['accuracy']:.3f} ({probe['base_rate']:.3f} for a constant)"
    )


def balance_rows(card: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return name, true share and share of the weak labels of each class of the transfer set."""
    n = card["transfer"]["n"]
    columns = zip(card["classes"], card["balance"]["true"], card["balance"]["weak"], strict=True)
    return [(name, true / n, weak / n) for name, true, weak in columns]


def cost_text(cost: Mapping[str, Any], seconds: float | None = None) -> str:
    """Return size and training of the weak model, as far as they are known."""
    parts = [
        f"{cost[key]:,} {words}"
        for key, words in (
            ("parameters", "trained parameters"),
            ("steps", "steps"),
            ("tokens", "tokens of training"),
        )
        if cost[key] is not None
    ]
    return ", ".join([*parts, *([] if seconds is None else [f"{seconds:.1f} s"])])


def stage_seconds(results: Mapping[str, Any], stages: Sequence[str]) -> float | None:
    """Return the seconds of some stages together, as their computation took; None if unknown."""
    known = results.get("provenance", {}).get("stages", {})
    seconds = [known[name]["seconds"] for name in stages if name in known]
    return None if not seconds or None in seconds else sum(seconds)
