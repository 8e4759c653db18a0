"""Paired differences of accuracy between two runs, over the seeds whose test items are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.comparison.file_results import is_of_files
from w2s_fast.comparison.run_scores import OutcomesBySeed, Results, model_scores, model_title
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.run_rows import paired_difference
from w2s_fast.report.outcomes import OUTCOMES, group_numbers


def run_differences(
    a: Results, b: Results, outcomes: tuple[OutcomesBySeed | None, OutcomesBySeed | None]
) -> list[dict[str, Any]]:
    """Return ``differences`` of ``diff_runs``: a row for each model in both runs.

    Args:
        a, b: The contents of their results.json.
        outcomes: What ``load_outcomes`` returns for both.

    Raises:
        W2SError: The items of the outcomes differ where those of the results do not.
    """
    first, second = model_scores(a), model_scores(b)
    models = dict.fromkeys(name for name, _ in first if name in {n for n, _ in second})
    rows = []
    for model in models:
        common = [s for n, s in first if n == model and (model, s) in second]
        seeds, reason = _comparable(a, b, common)
        row: dict[str, Any] = {"name": model_title(model), "seeds": seeds, "reason": reason}
        if seeds:
            accuracy = {s: [other[model, s].accuracy for other in (second, first)] for s in seeds}
            row |= _paired(_bases(a, seeds), accuracy, _pairs(model, seeds, *outcomes))
        rows.append(row)
    corrected = metrics.holm([row.get("p") for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def _comparable(a: Results, b: Results, common: Sequence[int]) -> tuple[list[int], str]:
    """Return the seeds with the same test items in both runs, and why the others are left out."""
    items = [results["provenance"].get("test_items", {}) for results in (a, b)]
    if not common:
        return [], "the runs have no seed in common"
    if is_of_files(a) != is_of_files(b):
        return [], "test items are known by id in one run and by content in the other"
    unknown = [s for s in common if not all(str(s) in own for own in items)]
    if unknown:
        return [], "results of an older version do not say which test items they have"
    same = [s for s in common if items[0][str(s)] == items[1][str(s)]]
    if not same:
        return [], "the test items differ at every seed"
    left = [str(s) for s in common if s not in same]
    return same, f"without seed {', '.join(left)}, whose test items differ" if left else ""


def _bases(a: Results, seeds: Sequence[int]) -> dict[str, list[int]]:
    """Return the compared seeds of each base."""
    base_of = {row["seed"]: row.get("base", "") for row in a["runs"]}
    bases: dict[str, list[int]] = {}
    for seed in seeds:
        bases.setdefault(base_of[seed], []).append(seed)
    return bases


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The test items of both runs: their groups (N,), and whether b and a are right (2, N)."""

    groups: dict[int, np.ndarray]
    right: dict[int, np.ndarray]


def _pairs(
    model: str, seeds: Sequence[int], a: OutcomesBySeed | None, b: OutcomesBySeed | None
) -> _Pairs | None:
    if a is None or b is None:
        return None
    right = {}
    for seed in seeds:
        row_of = {item: row for row, item in enumerate(b[seed].ids)}
        if row_of.keys() != set(a[seed].ids):
            raise W2SError(
                f"{OUTCOMES} of A and B have other items at seed {seed}, but their results the "
                "same; run both again, or remove the files to compare accuracies alone"
            )
        order = [row_of[item] for item in a[seed].ids]
        right[seed] = np.stack([b[seed].right[model][order], a[seed].right[model]])
    return _Pairs(group_numbers({s: a[s].groups for s in seeds}), right)


def _paired(
    bases: Mapping[str, Sequence[int]],
    accuracy: Mapping[int, Sequence[float]],
    pairs: _Pairs | None,
) -> dict[str, Any]:
    """Return the mean of b - a, with the interval over bases, seeds, or items of a single run."""
    if len({len(own) for own in bases.values()}) > 1:  # seeds that are left out, of some bases
        mean = np.mean([x - y for x, y in accuracy.values()])
        return {"difference": float(mean), "low": None, "high": None, "p": None}
    if pairs is None:
        runs = metrics.Runs(np.array([[accuracy[s] for s in own] for own in bases.values()]))
        found = metrics.paired_difference(runs)
    else:
        found = paired_difference(bases, pairs.groups, pairs.right)
    return {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
