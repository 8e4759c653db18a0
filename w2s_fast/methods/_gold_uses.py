"""Descriptions of the uses of true labels by a stage, which reports name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WEAK_SPLIT = {
    "calibration": "true labels of the weak split calibrate the weak labels",
    "trust": "true labels of the weak split train P(label right)",
    "gate": "true labels of the weak split select supervisors",
    "boosting": "true labels of the weak split weight the votes of weak models",
}


def transfer_uses(stage: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the uses of true labels of the transfer set; none for most stages."""
    uses = {
        "class balance of the transfer set": stage == "balance",
        "early stopping on true labels": settings.get("keep") == "gold",
        "explicit conflict: a simulated objective against the true labels": "conflict" in settings,
    }
    return tuple(use for use, applies in uses.items() if applies)


def other_uses(stage: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the uses of other true labels, beside training weak models."""
    uses = {
        "true labels of the weak split are shown as examples in prompts": stage == "samples"
        and settings["shots"],
        "implicit conflict: true labels of the pairs of task.conflict_path": "conflict_rows"
        in settings,
    }
    named = (_WEAK_SPLIT[stage],) if stage in _WEAK_SPLIT else ()
    return named + tuple(use for use, applies in uses.items() if applies)
