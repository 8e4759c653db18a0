r"""Compare the methods of a sweep: medians over cells, and a test against cross-entropy.

**Medians.** ``median`` is over the reported PGRs of all cells and seeds. ``median_openai`` follows
the notebook of openai/weak-to-strong: it omits pairs of equal models and pairs whose ceiling is not
above the floor, and nothing else; floor and ceiling of a pair are means over seeds:

    median over (pair, seed) of (a_student - mean a_floor) / (mean a_ceiling - mean a_floor)

**Against cross-entropy.** The difference in accuracy between a student and the one trained by plain
cross-entropy on the same weak labels, for each cell and seed, with a permutation test clustered by
test set. Cells of one task and seed share test items and usually a model, so their differences are
correlated: together they are one *unit*, with those of tasks that differ in other rows, such as in
``n_weak``. Under the null hypothesis the sign of each unit's sum
is random; p is the one-sided share of sign patterns whose total is at least the observed one (all
2^U patterns up to 16 units, 65536 random ones above). U units cannot give a p below 2^-U. The t
interval is over the means of the units, from three units on.

Test items of several units add to the error what differences between units do not show
(``metrics.runs``). The interval contains it. Signs of such units are not independent, so p is then
the larger one of that and the t test's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from w2s_fast.metrics import Runs, estimate, holm, mean_interval, p_value, runs_of
from w2s_fast.pipeline.statistics import BASELINE
from w2s_fast.report.outcomes import Outcomes, group_numbers, student_model

_PATTERNS = 2**16
_MEAN = np.ones(1)

Cells = Sequence[Mapping[str, Any]]
OutcomesOfCells = Mapping[str, Mapping[int, Outcomes]]  # by cell and seed
Unit = tuple[str, int]  # task and seed


def medians(cells: Cells) -> list[dict[str, Any]]:
    """Return the median PGR of each student, by task and then over all tasks.

    Args:
        cells: Entries of ``cells`` in sweep.json.

    Returns:
        Entries with ``task`` (None: all), ``name``, ``median`` over ``n`` PGRs, ``refused`` (the
        number of PGRs not reported), ``median_openai`` over ``n_openai``; None where n is 0.
    """
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    groups: list[str | None] = [*tasks, *([None] if len(tasks) > 1 else [])]
    return [
        {"task": task, "name": name} | _median(_runs_by_cell(cells, task, name))
        for task in groups
        for name in student_names(cells)
    ]


def student_names(cells: Cells) -> list[str]:
    """Return the names of the students, in order."""
    return list(dict.fromkeys(row["name"] for cell in cells for row in cell["summary"]))


def _runs_by_cell(cells: Cells, task: str | None, name: str) -> list[list[Mapping[str, Any]]]:
    """Return the runs of one student, a list per cell."""
    return [
        [{**run, "same": cell["same"]} for run in cell["runs"] if run["name"] == name]
        for cell in cells
        if task in (None, cell["task"])
    ]


def _median(runs_by_cell: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    reported: list[float] = []
    openai: list[float] = []
    omitted = 0
    for runs in runs_by_cell:
        pgrs = [r["pgr"] for r in runs if r["pgr"] is not None]
        reported += pgrs
        omitted += len(runs) - len(pgrs)
        floor = np.mean([r["weak"] for r in runs])
        gap = np.mean([r["ceiling"] for r in runs]) - floor
        if runs and gap > 0 and not runs[0]["same"]:
            openai += [float((r["student"] - floor) / gap) for r in runs]
    return {
        "median": float(np.median(reported)) if reported else None,
        "n": len(reported),
        "refused": omitted,
        "median_openai": float(np.median(openai)) if openai else None,
        "n_openai": len(openai),
    }


def comparisons(cells: Cells, outcomes: OutcomesOfCells) -> list[dict[str, Any]]:
    """Compare each student with plain cross-entropy; empty if the sweep lacks that student.

    Args:
        cells: Entries of ``cells`` in sweep.json.
        outcomes: Which test items the models of every cell have right.

    Returns:
        Entries with ``name``, ``difference`` (mean over units, in accuracy), ``low`` and ``high``
        (ends of its t interval over units; None below three), ``wins`` (pairs with higher
        accuracy), ``pairs`` (cell and seed), ``units`` (test set and seed), ``p`` (one-sided) and
        ``p_holm``, corrected for the number of students.
    """
    baseline = _baseline_name(cells)
    if baseline is None:
        return []
    unit_of = _units(cells, outcomes)
    groups = _groups(cells, outcomes, unit_of)
    entries: list[dict[str, Any]] = []
    for name in student_names(cells):
        if name == baseline:
            continue
        units = _paired_differences(unit_of, outcomes, name, baseline)
        differences = [float(d.mean()) for unit in units.values() for d in unit]
        means = runs_of(
            [[np.mean(unit, axis=0)[None] for unit in units.values()]],
            [[groups[key] for key in units]],
        )
        low, high = mean_interval(means, _MEAN) or (None, None)
        entries.append(
            {
                "name": name,
                "difference": float(means.accuracy.mean()),
                "low": low,
                "high": high,
                "wins": sum(d > 0 for d in differences),
                "pairs": len(differences),
                "units": len(units),
                "p": _one_sided_p(means, [float(np.sum(d, axis=0).mean()) for d in units.values()]),
            }
        )
    corrected = holm([entry["p"] for entry in entries])
    return [{**entry, "p_holm": p} for entry, p in zip(entries, corrected, strict=True)]


def _baseline_name(cells: Cells) -> str | None:
    """Return the name of the student trained by cross-entropy on unmodified weak labels."""
    for cell in cells:
        for row in cell["summary"]:
            if (row["method"], row["loss"]) == BASELINE:
                return str(row["name"])
    return None


def _units(cells: Cells, outcomes: OutcomesOfCells) -> dict[tuple[str, int], Unit]:
    """Return the unit of every cell and seed, named by the first task with these test items."""
    first: dict[tuple[int, tuple[str, ...]], str] = {}
    return {
        (cell["name"], seed): (first.setdefault((seed, own.ids), cell["task"]), seed)
        for cell in cells
        for seed, own in outcomes[cell["name"]].items()
    }


def _groups(
    cells: Cells, outcomes: OutcomesOfCells, unit_of: Mapping[tuple[str, int], Unit]
) -> dict[Unit, np.ndarray]:
    """Return the groups (N,) of the test items of every unit.

    An id is a digest of the item. Without items in common, groups of two tasks are others, whatever
    their names.
    """
    data = _data_names(cells, outcomes)
    return group_numbers(
        {
            unit: [f"{data[unit[0]]}/{group}" for group in outcomes[name][seed].groups]
            for (name, seed), unit in unit_of.items()
        }
    )


def _data_names(cells: Cells, outcomes: OutcomesOfCells) -> dict[str, str]:
    """Return one name for all tasks with test items in common, directly or through others."""
    ids: dict[str, set[str]] = {}
    for cell in cells:
        ids.setdefault(cell["task"], set()).update(
            *(o.ids for o in outcomes[cell["name"]].values())
        )
    names: dict[str, str] = {}
    for task, own in ids.items():
        same = {names[other] for other in names if ids[other] & own}
        names[task] = task
        names = {other: task if name in same else name for other, name in names.items()}
    return names


def _paired_differences(
    unit_of: Mapping[tuple[str, int], Unit], outcomes: OutcomesOfCells, name: str, baseline: str
) -> dict[Unit, list[np.ndarray]]:
    """Return by unit, for each of its cells, by how much more a test item is right (N,)."""
    units: dict[Unit, list[np.ndarray]] = {}
    for (cell, seed), unit in unit_of.items():
        own = outcomes[cell][seed]
        right = [own.right[student_model(n)].astype(float) for n in (name, baseline)]
        units.setdefault(unit, []).append(right[0] - right[1])
    return units


def _one_sided_p(means: Runs, sums: Sequence[float]) -> float:
    """Return the p of a positive difference, given means and sums of the units."""
    p = sign_flip(sums)
    error = estimate(means, _MEAN)
    if means.common is None or error is None:
        return p
    half = float(p_value(error)) / 2
    return max(p, half if error.mean > 0 else 1 - half)


def sign_flip(sums: Sequence[float]) -> float:
    """Return the one-sided p-value of a positive total, flipping the sign of each unit.

    Args:
        sums: (U,) sum of the paired differences of each unit.
    """
    from scipy.stats import permutation_test

    values = np.asarray(sums)
    if len(values) == 1:  # scipy needs at least two
        return 0.5 if values[0] > 0 else 1.0
    test = permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        alternative="greater",
        n_resamples=_PATTERNS,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
