r"""Scores of weak model, student and ceiling, and the performance gap recovered (PGR).

    PGR = (a_student - a_floor) / (a_ceiling - a_floor)                  (Burns et al. 2023, §3)

PGR is omitted if the gap between floor and ceiling is below two standard errors on the same test
items, or if the ceiling is not above chance. Intervals resample seeds and, within each, groups of
related test items; floor, student and ceiling are scored on the same resampled items. N items, C
classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_BOOTSTRAP = 2000
LEVEL = 0.95
MIN_GAP_SE = 2.0  # smallest gap, in standard errors, for which PGR is reported
_CHUNK_ITEMS = 4_000_000  # bootstrap weights in memory at a time: 32 MB


@dataclass(frozen=True)
class Outcomes:
    """Correctness per test item of the three models of one seed.

    Attributes:
        weak, student, ceiling: (N,) bool, True where the prediction is right.
        groups: (N,) int64; items of one group are resampled together.
    """

    weak: np.ndarray
    student: np.ndarray
    ceiling: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """Share of test items where student and weak model predict the same class; None: no items."""

    all: float | None
    weak_right: float | None
    weak_wrong: float | None


@dataclass(frozen=True)
class Gap:
    """Floor and ceiling of a seed, the standard error of their gap, and why its PGR is omitted."""

    floor: float
    ceiling: float
    se: float | None  # None: unknown, as for a single group
    omitted: str | None  # None: the PGR is reported


def accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of rows of ``probs`` (N, C) whose largest entry is at ``labels`` (N,)."""
    return float((probs.argmax(1) == labels).mean())


def balanced_accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean recall over the classes that occur in ``labels`` (N,).

    Always predicting one class scores 1 / (number of these classes).
    """
    right = probs.argmax(1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def f1(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Return F1 = 2 TP / (2 TP + FP + FN) of the top classes of ``probs`` (N, C).

    Two classes: F1 of class 1. More: the mean over the classes that occur in ``labels`` (N,) or are
    predicted. None for two classes if class 1 neither occurs nor is predicted.
    """
    chosen = probs.argmax(1)
    classes = [1] if probs.shape[1] == 2 else range(probs.shape[1])
    each = [
        2 * np.sum((chosen == c) & (labels == c)) / n
        for c in classes
        if (n := np.sum(chosen == c) + np.sum(labels == c))
    ]
    return float(np.mean(each)) if each else None


def auroc(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the area under the ROC curve; ties count half.

    Two classes: that of P(class 1). More: the one-vs-rest mean over the classes that occur.
    None if only one class occurs in ``labels`` (N,).
    """
    classes = [1] if probs.shape[1] == 2 else range(probs.shape[1])
    areas = [_binary_auroc(probs[:, c], labels == c) for c in classes]
    defined = [a for a in areas if a is not None]
    return float(np.mean(defined)) if defined else None


def _binary_auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if n_pos == 0 or n_neg == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2  # ties share the mean of their ranks
    rank_sum = mid_ranks[inverse][positive].sum()
    return float((rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def agreement(student: np.ndarray, weak: np.ndarray, labels: np.ndarray) -> Agreement:
    """Return the agreement of student and weak model (N,), split by whether the latter is right."""
    same, right = student == weak, weak == labels

    def share(mask: np.ndarray) -> float | None:
        return float(same[mask].mean()) if mask.any() else None

    return Agreement(share(np.ones_like(right)), share(right), share(~right))


def pgr(floor: float, student: float, ceiling: float) -> float:
    """Return the performance gap recovered; may be below 0 or above 1.

    Raises:
        ZeroDivisionError: Floor and ceiling are equal; call ``omission_reason`` first.
    """
    return (student - floor) / (ceiling - floor)


def gap_se(floor: float, ceiling: float, n_items: int) -> float:
    """Return the standard error of ceiling - floor for independent accuracies."""
    return math.sqrt((floor * (1 - floor) + ceiling * (1 - ceiling)) / n_items)


def paired_gap_se(outcomes: Outcomes) -> float:
    """Return the standard error of ceiling - floor on the same items, clustered by group."""
    diff = outcomes.ceiling.astype(float) - outcomes.weak.astype(float)
    sums = np.bincount(outcomes.groups, weights=diff - diff.mean())
    n_groups = len(np.unique(outcomes.groups))
    if n_groups < 2:
        return math.inf
    return float(math.sqrt((sums**2).sum() * n_groups / (n_groups - 1)) / len(diff))


def omission_reason(
    floor: float, ceiling: float, se: float, *, n_items: int, n_classes: int = 2
) -> str | None:
    """Return why a PGR would be noise, or None if it is to be reported.

    Args:
        floor: Accuracy of the weak model.
        ceiling: Accuracy of the strong model trained on true labels.
        se: Standard error of ``ceiling - floor``.
        n_items: Number of test items of both accuracies.
        n_classes: C, for the chance level 1/C; 0 for generation tasks, whose chance level is 0.
    """
    gap, chance = ceiling - floor, 1 / n_classes if n_classes else 0.0
    numbers = f"floor {floor:.3f}, ceiling {ceiling:.3f}, {n_items} test items"
    if gap <= 0:
        return f"no PGR: the ceiling is not above the floor ({numbers})"
    if not gap >= MIN_GAP_SE * se:
        return (
            f"no PGR: the ceiling is only {gap / se:.1f} standard errors above the floor, "
            f"{MIN_GAP_SE:g} are needed ({numbers})"
        )
    if not ceiling - chance >= MIN_GAP_SE * math.sqrt(ceiling * (1 - ceiling) / n_items):
        return f"no PGR: the ceiling is no better than guessing, {chance:.3f} ({numbers})"
    return None


def omission_reason_over_seeds(
    seeds: Sequence[Gap], *, n_items: int, n_classes: int = 2
) -> str | None:
    """Return why a mean PGR over seeds would be noise, or None; see ``omission_reason``.

    Seeds that happen to have a wide gap do not represent the others: if the PGR of some seeds is
    omitted, the mean of the rest is reported only if the pooled gap is wide enough. Its standard
    error is the mean over seeds, as if all had the same test items.
    """
    omitted = [s.omitted for s in seeds if s.omitted]
    if not omitted or len(omitted) == len(seeds):
        return omitted[0] if omitted else None
    floor = math.fsum(s.floor for s in seeds) / len(seeds)
    ceiling = math.fsum(s.ceiling for s in seeds) / len(seeds)
    se = sum(math.inf if s.se is None else s.se for s in seeds) / len(seeds)
    return omission_reason(floor, ceiling, se, n_items=n_items, n_classes=n_classes)


def pgr_interval(
    seeds: Sequence[Outcomes],
    *,
    same_items: bool,
    n_resamples: int = N_BOOTSTRAP,
    level: float = LEVEL,
    rng_seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the mean PGR over seeds.

    Seeds and test items are both resampled, items by group and equally for the three models. A
    single seed gives the interval over items alone.

    Args:
        seeds: One entry per seed, each with a reported PGR.
        same_items: Whether all seeds have the same test items, and so share each draw.
        n_resamples: Bootstrap replicates.
        level: Coverage, e.g. 0.95.
        rng_seed: Seed of the resampling.
    """
    rng = np.random.default_rng(rng_seed)
    tables = [_group_table(s) for s in seeds]
    ratios = np.empty((n_resamples, len(seeds)))
    step = max(1, _CHUNK_ITEMS // max(len(t) for t in tables))
    for lo in range(0, n_resamples, step):
        hi = min(lo + step, n_resamples)
        weights = None
        for s, table in enumerate(tables):
            if weights is None or not same_items:
                weights = _resample(rng, len(table), hi - lo)
            ratios[lo:hi, s] = _ratios(weights @ table)
    chosen = rng.integers(len(seeds), size=ratios.shape)
    drawn = np.take_along_axis(ratios, chosen, axis=1)
    defined = np.isfinite(drawn).sum(axis=1)  # a draw may have a gap of 0
    means = np.nansum(drawn, axis=1)[defined > 0] / defined[defined > 0]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _group_table(o: Outcomes) -> np.ndarray:
    """Return (G, 3) float64: per group, the numbers of right items of weak, student and ceiling."""
    return np.stack(
        [np.bincount(o.groups, weights=m.astype(float)) for m in (o.weak, o.student, o.ceiling)], 1
    )


def _resample(rng: np.random.Generator, n: int, replicates: int) -> np.ndarray:
    """Return (replicates, n) float64: counts of n groups in n draws with replacement, per row."""
    drawn = rng.integers(n, size=(replicates, n)) + n * np.arange(replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * replicates).reshape(replicates, n).astype(float)


def _ratios(right: np.ndarray) -> np.ndarray:
    """Return PGR of each row of (B, 3) counts; the item count cancels. NaN where undefined."""
    weak, student, ceiling = right.T
    gap = ceiling - weak
    return np.divide(student - weak, gap, out=np.full(len(gap), np.nan), where=gap > 0)
