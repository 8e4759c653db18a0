"""Simulate one cell and return its row: how often each interval contains its target."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from bench.intervals import previous_rule
from bench.intervals.simulated_runs import (
    BASELINE,
    CEILING,
    WEAK,
    Cell,
    Simulated,
    simulate,
)
from w2s_fast.metrics import (
    GAP,
    LEVEL,
    MIN_DRAWS,
    Runs,
    drawn_levels,
    estimate,
    gap_quantile,
    half_width,
    pgr_is_in_interval,
)

_GAIN = np.array([-1.0, 1.0, 0.0, 0.0])  # baseline - weak
_PAIRED = np.array([0.0, -1.0, 1.0, 0.0])  # method - baseline
_OLD_REPLICATES = 250  # of the bootstrap, which is slow


def measure(cell: Cell, replicates: int, seed: int = 0) -> dict[str, Any]:
    """Return the row of a cell: its settings, ``z`` and shares of the replicates.

    ``z`` is the true gap in standard deviations of its mean over runs; ``printed`` and
    ``printed_before`` are how often a PGR is reported, now and by the previous rule.
    """
    drawn = simulate(cell, replicates, seed, MIN_DRAWS)
    models = _of(drawn.runs, [WEAK, BASELINE, CEILING])
    targets = drawn.target[:, [WEAK, BASELINE, CEILING]]
    error = models.accuracy.mean((1, 2)) @ GAP - targets @ GAP
    row: dict[str, Any] = {
        **asdict(cell),
        "replicates": replicates,
        "z": round(cell.gap / float(np.sqrt((error**2).mean())), 2),
        "printed": _share(is_printed(models)),
    }
    if drawn.patterns is not None:
        row["printed_before"] = _share(previous_rule.is_printed(drawn.patterns))
    return row | (_intervals(drawn, models, targets, seed) if drawn_levels(models) else {})


def _intervals(drawn: Simulated, models: Runs, targets: np.ndarray, seed: int) -> dict[str, float]:
    """Return how often each interval contains its target."""
    shares = {
        "gain": _share(_contains(drawn, _GAIN)),
        "paired": _share(_contains(drawn, _PAIRED)),
        "paired_over_seeds": _share(_contains_over_seeds(drawn, _PAIRED)),
    }
    gap = targets @ GAP
    if not gap.all():
        return shares
    pgr = (targets[:, 1] - targets[:, 0]) / gap
    shares["pgr"] = _share(pgr_is_in_interval(models, pgr))
    if drawn.patterns is not None:
        some = slice(0, _OLD_REPLICATES)
        inside = previous_rule.bootstrap_contains(drawn.patterns[some], pgr[some], seed)
        shares["pgr_before"] = _share(inside)
    return shares


def is_printed(models: Runs) -> np.ndarray:
    """Return whether the gap of (weak, student, ceiling) suffices to report a PGR."""
    gap = estimate(models, GAP, fewest=2)
    assert gap is not None
    return gap.mean >= np.maximum(gap_quantile(gap.df) * np.sqrt(gap.variance), 1e-12)


def _of(runs: Runs, models: list[int]) -> Runs:
    """Return the runs of some models, in this order."""
    covariances = (
        None if c is None else c[:, models][:, :, models] for c in (runs.common, runs.within)
    )
    return Runs(runs.accuracy[..., models], runs.crossed, *covariances)


def _contains(drawn: Simulated, contrast: np.ndarray) -> np.ndarray:
    error = estimate(drawn.runs, contrast)
    assert error is not None
    return np.abs(error.mean - drawn.target @ contrast) <= half_width(error, LEVEL)


def _contains_over_seeds(drawn: Simulated, contrast: np.ndarray) -> np.ndarray:
    """Return what t over seeds would cover if the bases counted as given."""
    means = Runs(drawn.runs.accuracy.mean(1, keepdims=True))
    return _contains(Simulated(means, drawn.target, None), contrast)


def _share(inside: np.ndarray) -> float:
    return round(float(inside.mean()), 4)
