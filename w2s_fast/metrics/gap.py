r"""The performance gap recovered, and when it is not reported.

    PGR = (a_student - a_floor) / (a_ceiling - a_floor)                  (Burns et al. 2023, §3)

A ratio over a gap that may be 0 is noise. The PGR of one run is omitted if the gap is below two
standard errors over its test items. The PGR of several runs is omitted unless the mean gap passes a
one-sided t test at ``1 - REPORT_LEVEL``, with its error over the bases or seeds that were drawn: a
gap of 0 is reported in at most 5 % of experiments, however many seeds they have. Both are omitted
if the ceiling is not above chance.
"""

from __future__ import annotations

import math

import numpy as np

from w2s_fast.metrics.estimates import estimate
from w2s_fast.metrics.runs import Runs

MIN_GAP_SE = 2.0  # smallest gap of one run, in standard errors, for which PGR is reported
# Of the one-sided test of the gap over several runs. Accuracies are counts of items, for which a
# test at 5 % reports a gap of 0 up to 5.2 % of the time.
REPORT_LEVEL = 0.952
GAP = np.array([-1.0, 0.0, 1.0])  # coefficients of (weak, student, ceiling)


def pgr(floor: float, student: float, ceiling: float) -> float:
    """Return the performance gap recovered; may be below 0 or above 1.

    Raises:
        ZeroDivisionError: Floor and ceiling are equal; call ``omission_reason`` first.
    """
    return (student - floor) / (ceiling - floor)


def gap_se(floor: float, ceiling: float, n_items: int) -> float:
    """Return the standard error of ceiling - floor for independent accuracies."""
    return math.sqrt((floor * (1 - floor) + ceiling * (1 - ceiling)) / n_items)


def omission_reason(
    floor: float,
    ceiling: float,
    se: float,
    *,
    n_items: int,
    n_classes: int = 2,
    needed: float = MIN_GAP_SE,
) -> str | None:
    """Return why a PGR would be noise, or None if it is to be reported.

    Args:
        floor: Accuracy of the weak model.
        ceiling: Accuracy of the strong model trained on true labels.
        se: Standard error of ``ceiling - floor``.
        n_items: Number of test items of both accuracies.
        n_classes: C, for the chance level 1/C; 0 for generation tasks, whose chance level is 0.
        needed: Smallest gap to report, in standard errors.
    """
    gap, chance = ceiling - floor, 1 / n_classes if n_classes else 0.0
    numbers = f"floor {floor:.3f}, ceiling {ceiling:.3f}, {n_items} test items"
    if gap <= 0:
        return f"no PGR: the ceiling is not above the floor ({numbers})"
    if not gap >= needed * se:
        return (
            f"no PGR: the ceiling is only {gap / se:.1f} standard errors above the floor, "
            f"{needed:.1f} are needed ({numbers})"
        )
    if not ceiling - chance >= MIN_GAP_SE * math.sqrt(ceiling * (1 - ceiling) / n_items):
        return f"no PGR: the ceiling is no better than guessing, {chance:.3f} ({numbers})"
    return None


def gap_quantile(df: np.ndarray | float) -> np.ndarray:
    """Return the standard errors that the gap of several runs needs, with its degrees of
    freedom."""
    from scipy.stats import t

    return t.ppf(REPORT_LEVEL, df)


def omission_reason_over_runs(runs: Runs, *, n_items: int, n_classes: int = 2) -> str | None:
    """Return why the PGR of several runs would be noise, or None; see ``omission_reason``.

    Args:
        runs: Accuracies of (weak, student, ceiling) in at least two runs.
        n_items: Number of test items of a run.
        n_classes: C, or 0; see ``omission_reason``.
    """
    floor, _, ceiling = runs.accuracy.mean((0, 1))
    gap = estimate(runs, GAP, fewest=2)
    assert gap is not None, "a single run has no differences between runs"
    return omission_reason(
        float(floor),
        float(ceiling),
        float(np.sqrt(gap.variance)),
        n_items=n_items,
        n_classes=n_classes,
        needed=float(gap_quantile(gap.df)),
    )
