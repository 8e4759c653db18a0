"""Accuracies of models over runs, and the covariance that their test items share.

A run is one base (the pretrained weights that a student starts from) at one seed. B bases, S seeds
a base, K models, N test items. An estimate is a contrast of the models' accuracies: one coefficient
per model, such as (-1, 0, 1) for ceiling - weak of (weak, student, ceiling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2s_fast.errors import W2SError


@dataclass(frozen=True, eq=False)
class Runs:
    """Accuracies of K models in every run, and what their test items add to the error of a mean.

    Leading dimensions are free: a simulation has one per replicate.

    Attributes:
        accuracy: (..., B, S, K) float64.
        crossed: Whether all bases have the same S seeds, and with them the same data and weak
            models. In a run of the pipeline every base has seeds of its own.
        common: (..., K, K) float64, the covariance of the mean accuracies that comes from test
            items which runs share, beyond what differences between runs show; None: they share
            none, or only those of their seed.
        within: (..., K, K) float64, the covariance of the mean accuracies that the items of each
            run alone would give; used where runs do not differ at all. None: not known.
    """

    accuracy: np.ndarray
    crossed: bool = False
    common: np.ndarray | None = None
    within: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.accuracy.ndim < 3 or not self.accuracy.size:
            raise W2SError(
                f"accuracy has shape {self.accuracy.shape}; expected (..., bases, seeds, models)"
            )

    @property
    def n_bases(self) -> int:
        """B."""
        return self.accuracy.shape[-3]

    @property
    def n_seeds(self) -> int:
        """S."""
        return self.accuracy.shape[-2]


def runs_of(right: Sequence[Sequence[np.ndarray]], groups: Sequence[Sequence[np.ndarray]]) -> Runs:
    """Return the runs of per-item results, of bases that have seeds of their own.

    Args:
        right: B x S arrays (K, N) bool, True where a prediction is right. All runs have the same
            test items if ``groups`` are the same objects, else each has its own.
        groups: B x S arrays (N,) int64; items of one group are correlated.

    Raises:
        W2SError: The shapes do not fit.
    """
    shapes = [[np.shape(run) for run in base] for base in right]
    if [[s[-1:] for s in base] for base in shapes] != [[np.shape(g) for g in b] for b in groups]:
        raise W2SError(
            f"right has arrays of shapes {shapes}; expected (models, items), as many items as "
            "groups has"
        )
    accuracy = np.array([[run.mean(-1) for run in base] for base in right], dtype=float)
    flat = [run for base in right for run in base], [g for base in groups for g in base]
    every = list(zip(*flat, strict=True))
    first = every[0][1]
    if len(every) > 1 and all(g is first for _, g in every):
        common, within = _shared_items([run for run, _ in every], first)
        return Runs(accuracy, common=common, within=within)
    within = np.sum([_clustered(run, g) for run, g in every], axis=0) / len(every) ** 2
    return Runs(accuracy, within=within)


def _shared_items(runs: list[np.ndarray], groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (common, within) (K, K) of the mean over R runs (K, N) that share their items.

    The covariance of the mean over runs is a + e / R, where a belongs to the items and e to items
    within a run; that of one run is a + e. Differences between runs show e / R already, so a alone
    is added.
    """
    n = len(runs)
    alone = np.mean([_clustered(run, groups) for run in runs], axis=0)
    of_mean = _clustered(np.mean(np.asarray(runs, dtype=float), axis=0), groups)
    return (of_mean - alone / n) * n / (n - 1), alone / n


def _clustered(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the covariance (K, K) of the means over items of (K, N), clustered by group."""
    names, index = np.unique(groups, return_inverse=True)
    n_groups = len(names)
    if n_groups < 2:
        return np.full((len(values), len(values)), np.inf)
    centred = values - values.mean(-1, keepdims=True)
    sums = np.stack([np.bincount(index, weights=row, minlength=n_groups) for row in centred])
    return sums @ sums.T * n_groups / (n_groups - 1) / values.shape[-1] ** 2
