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
            items of more than one run, beyond what differences between runs show; None: every run
            has its own.
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
        right: B x S arrays (K, N) bool, True where a prediction is right; or float, any score of an
            item whose mean is what is compared.
        groups: B x S arrays (N,) int64. Items of one number are correlated, in a run and between
            the runs that have it: an item that several runs are tested on has one number in all of
            them, and test sets without a common item have numbers of their own.

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
    every = [_influences(run, g) for run, g in zip(*flat, strict=True)]
    within = np.sum([_variance(own) for _, own in every], axis=0) / len(every) ** 2
    return Runs(accuracy, common=_common(every), within=within)


def _influences(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups (G,) of a run, and what each adds to the errors of its means (K, G)."""
    names, index = np.unique(groups, return_inverse=True)
    centred = values - values.mean(-1, keepdims=True)
    sums = np.stack([np.bincount(index, weights=row) for row in centred])
    n = len(names)
    return names, sums * np.sqrt(n / max(n - 1, 1)) / values.shape[-1]


def _variance(influences: np.ndarray) -> np.ndarray:
    """Return the covariance (K, K) of the means of a run; of a single group nothing is known."""
    k, n_groups = influences.shape
    return influences @ influences.T if n_groups > 1 else np.full((k, k), np.inf)


def _common(every: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """Return the mean covariance (K, K) of two runs by their common groups; None if none has any.

    The variance of a mean over R runs is (a + (R - 1) c) / R for runs of variance a and covariance
    c. Differences between runs show (a - c) / R, so c is added.
    """
    names, at = np.unique(np.concatenate([own for own, _ in every]), return_inverse=True)
    if len(names) == len(at):
        return None
    total = np.zeros((len(every[0][1]), len(names)))
    ends = np.cumsum([len(own) for own, _ in every])
    for (_, influences), places in zip(every, np.split(at, ends[:-1]), strict=True):
        total[:, places] += influences
    alone = np.sum([own @ own.T for _, own in every], axis=0)
    return (total @ total.T - alone) / (len(every) * (len(every) - 1))
