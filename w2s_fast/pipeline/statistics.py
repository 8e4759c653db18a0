"""Statistics over the runs of an experiment, as results.json has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from w2s_fast import metrics

BASELINE = ("naive", "xent")  # method and loss that the others are compared with


def design(runs: metrics.Runs) -> dict[str, Any]:
    """Return ``design`` of results.json: what was drawn, and what intervals generalize over.

    ``over`` is empty where there are too few draws: then only a single run has an interval, which
    resamples its test items.
    """
    over = list(metrics.drawn_levels(runs))
    return {"bases": runs.n_bases, "seeds": runs.n_seeds, "over": over, "level": metrics.LEVEL}


def pgr_over_runs(runs: metrics.Runs, *, n_items: int, n_classes: int = 2) -> dict[str, Any]:
    """Return the PGR of the mean accuracies, its interval, or why it is omitted.

    Args:
        runs: Accuracies of (weak, student, ceiling) in at least two runs.
        n_items: Number of test items of a run.
        n_classes: C, or 0 for generation tasks.

    Returns:
        ``pgr_mean``, ``pgr_low`` and ``pgr_high`` (None without an interval or without an end),
        ``pgr_unbounded`` and ``refused``.
    """
    reason = metrics.omission_reason_over_runs(runs, n_items=n_items, n_classes=n_classes)
    if reason:
        return _pgr(None, None, reason)
    weak, student, ceiling = (float(a) for a in runs.accuracy.mean((0, 1)))
    return _pgr(metrics.pgr(weak, student, ceiling), metrics.pgr_interval(runs), None)


def pgr_of_one_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``pgr_over_runs`` of a single run: its own PGR, with the interval over its items."""
    interval = None if run["pgr_low"] is None else (run["pgr_low"], run["pgr_high"])
    return _pgr(run["pgr"], interval, run["refused"])


def _pgr(
    value: float | None, interval: tuple[float, float] | None, reason: str | None
) -> dict[str, Any]:
    low, high = interval or (None, None)
    ends = [None if end is None or math.isinf(end) else end for end in (low, high)]
    return {
        "pgr_mean": value,
        "pgr_low": ends[0],
        "pgr_high": ends[1],
        "pgr_unbounded": interval is not None and None in ends,
        "refused": reason,
    }


def baseline_name(students: Mapping[str, tuple[str, str]]) -> str:
    """Return the student that others are compared with: plain cross-entropy, else the first.

    Args:
        students: Method and loss by name, in order.
    """
    return next((n for n, spec in students.items() if spec == BASELINE), next(iter(students)))


def difference_rows(
    differences: Mapping[str, metrics.Difference], baseline: str
) -> list[dict[str, Any]]:
    """Return ``differences`` of results.json: a row per student, in order.

    Args:
        differences: Paired differences to the baseline, by name of the student.
        baseline: Name of the baseline.
    """
    corrected = metrics.holm([d.p for d in differences.values()])
    return [
        {
            "name": name,
            "baseline": baseline,
            "difference": d.mean,
            "low": d.low,
            "high": d.high,
            "p": d.p,
            "p_holm": p_holm,
        }
        for (name, d), p_holm in zip(differences.items(), corrected, strict=True)
    ]
