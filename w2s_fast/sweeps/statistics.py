r"""What a sweep says about a method: medians over cells, and whether it beats cross-entropy.

**Medians.** ``median`` is over the PGRs of all cells and seeds that are not refused. Beside it is
the median as the notebook of openai/weak-to-strong computes it: pairs of equal models and pairs
whose ceiling is not above the floor are left out, nothing else is refused, and floor and ceiling of
a pair are their means over seeds:

    median over (pair, seed) of (a_student - mean a_floor) / (mean a_ceiling - mean a_floor)

**Against cross-entropy.** The difference of accuracy between a student and the one trained by plain
cross-entropy on the same weak labels, cell by cell and seed by seed. Cells of one task and seed
share their test items and mostly a model, so their differences move together: they are one *unit*.
If the method made no difference, the sign of each unit's sum would be a coin flip; p is the share
of all sign patterns whose sum is at least the one seen, one-sided (all 2^U patterns up to 16
units, 65536 random ones above). U units cannot give a p below 2^-U.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

BASE = ("naive", "xent")  # method and loss that others are compared with
_PATTERNS = 2**16

Cells = Sequence[Mapping[str, Any]]


def medians(cells: Cells) -> list[dict[str, Any]]:
    """Return the medians of each student's PGR, a task at a time, then over all tasks.

    Args:
        cells: Entries of ``cells`` in sweep.json.

    Returns:
        Entries with ``task`` (None: all), ``name``, ``median`` over ``n`` PGRs, ``refused`` (how
        many there are besides), ``median_openai`` over ``n_openai``; None where n is 0.
    """
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    groups: list[str | None] = [*tasks, *([None] if len(tasks) > 1 else [])]
    return [
        {"task": task, "name": name} | _median(_rows(cells, task, name))
        for task in groups
        for name in names(cells)
    ]


def names(cells: Cells) -> list[str]:
    """Names of the students, in order."""
    return list(dict.fromkeys(row["name"] for cell in cells for row in cell["summary"]))


def _rows(cells: Cells, task: str | None, name: str) -> list[list[Mapping[str, Any]]]:
    """Runs of one student, a list a cell."""
    return [
        [{**run, "same": cell["same"]} for run in cell["runs"] if run["name"] == name]
        for cell in cells
        if task in (None, cell["task"])
    ]


def _median(rows: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    kept: list[float] = []
    openai: list[float] = []
    refused = 0
    for runs in rows:
        pgrs = [r["pgr"] for r in runs if r["pgr"] is not None]
        kept += pgrs
        refused += len(runs) - len(pgrs)
        floor = np.mean([r["weak"] for r in runs])
        gap = np.mean([r["ceiling"] for r in runs]) - floor
        if runs and gap > 0 and not runs[0]["same"]:
            openai += [float((r["student"] - floor) / gap) for r in runs]
    return {
        "median": float(np.median(kept)) if kept else None,
        "n": len(kept),
        "refused": refused,
        "median_openai": float(np.median(openai)) if openai else None,
        "n_openai": len(openai),
    }


def comparisons(cells: Cells) -> list[dict[str, Any]]:
    """Return each student against plain cross-entropy; empty if that is not in the sweep.

    Args:
        cells: Entries of ``cells`` in sweep.json.

    Returns:
        Entries with ``name``, ``difference`` (mean, of accuracy), ``wins`` (pairs with a larger
        accuracy), ``pairs`` (cell and seed), ``units`` (task and seed), ``p`` (one-sided).
    """
    base = _base(cells)
    if base is None:
        return []
    found = []
    for name in names(cells):
        if name == base:
            continue
        differences, units = _paired(cells, name, base)
        found.append(
            {
                "name": name,
                "difference": float(np.mean(differences)),
                "wins": sum(d > 0 for d in differences),
                "pairs": len(differences),
                "units": len(set(units)),
                "p": sign_flip(differences, units),
            }
        )
    return found


def _base(cells: Cells) -> str | None:
    """Name of the student of plain cross-entropy on the weak labels as they are."""
    for cell in cells:
        for row in cell["summary"]:
            if (row["method"], row["loss"]) == BASE:
                return str(row["name"])
    return None


def _paired(cells: Cells, name: str, base: str) -> tuple[list[float], list[tuple[str, int]]]:
    """Differences of accuracy, and the unit that each belongs to."""
    differences, units = [], []
    for cell in cells:
        accuracy = {(r["name"], r["seed"]): r["student"] for r in cell["runs"]}
        for seed in dict.fromkeys(r["seed"] for r in cell["runs"]):
            differences.append(accuracy[name, seed] - accuracy[base, seed])
            units.append((cell["task"], seed))
    return differences, units


def sign_flip(differences: Sequence[float], units: Sequence[Any]) -> float:
    """Return the one-sided p of a positive mean difference, signs flipped unit by unit.

    Args:
        differences: (N,) paired differences.
        units: (N,) the unit of each.
    """
    from scipy.stats import permutation_test

    sums: dict[Any, float] = {}
    for difference, unit in zip(differences, units, strict=True):
        sums[unit] = sums.get(unit, 0.0) + difference
    values = np.array(list(sums.values()))
    if len(values) == 1:  # scipy wants two
        return 0.5 if values[0] > 0 else 1.0
    found = permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        alternative="greater",
        n_resamples=_PATTERNS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)
