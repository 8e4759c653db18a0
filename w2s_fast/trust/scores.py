r"""Scores of predicted probabilities of an event, with intervals, against a constant prediction.

    AUROC    P(a right row is trusted more than a wrong one), ties count half; a constant has 1/2
    Brier    mean_i (p_i - r_i)^2, in [0, 1]
    gain     Brier of the constant minus Brier of the predictions, above 0 if they are better

The constant of a row is the share of right rows outside its fold. Intervals are percentiles of a
bootstrap over groups of rows; they hold the fitted models fixed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from w2s_fast import metrics

N_RESAMPLES = 1000
_CHUNK = 2_000_000  # bootstrap weights in memory at a time


@dataclass(frozen=True)
class TrustScores:
    """Scores of cross-fitted predictions; each interval is (low, high) at ``metrics.LEVEL``.

    Attributes:
        n_right, n_wrong: Labelled rows whose label is right, or wrong.
        auroc, auroc_interval: Area under the ROC curve; 0.5 is no information.
        brier, brier_constant: Brier score of the predictions, and of the constant.
        brier_gain, brier_gain_interval: ``brier_constant - brier``.
        ece, ece_noise: Calibration error, and what calibrated predictions would show by chance,
            see ``metrics.ece``.
    """

    n_right: int
    n_wrong: int
    auroc: float
    auroc_interval: tuple[float, float]
    brier: float
    brier_constant: float
    brier_gain: float
    brier_gain_interval: tuple[float, float]
    ece: float
    ece_noise: float

    def as_dict(self) -> dict[str, object]:
        """Return the scores as plain values for JSON."""
        return asdict(self)


def score_trust(
    trust: np.ndarray, constant: np.ndarray, right: np.ndarray, groups: np.ndarray, seed: int = 0
) -> TrustScores:
    """Score predictions that were made without the rows they are scored on.

    Args:
        trust: (n,) predicted probabilities of being right.
        constant: (n,) constant predictions.
        right: (n,) bool, some True and some False.
        groups: (n,) int64; rows of one group are resampled together.
        seed: Seed of the bootstrap.
    """
    errors, errors_constant = (trust - right) ** 2, (constant - right) ** 2
    ranks = np.unique(trust, return_inverse=True)[1]
    n_groups = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=n_groups)
    gains = np.bincount(groups, weights=errors_constant - errors, minlength=n_groups)
    rng, areas, differences = np.random.default_rng(seed), [], []
    step = max(1, _CHUNK // len(trust))
    for start in range(0, N_RESAMPLES, step):
        rows = min(step, N_RESAMPLES - start)
        drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=rows)
        areas.append(_auroc(ranks, right, drawn[:, groups].astype(np.float64)))
        differences.append((drawn @ gains) / (drawn @ sizes))
    pairs = np.stack([1 - trust, trust], 1)
    outcomes = right.astype(np.int64)
    brier, brier_constant = float(errors.mean()), float(errors_constant.mean())
    return TrustScores(
        n_right=int(right.sum()),
        n_wrong=int((~right).sum()),
        auroc=float(_auroc(ranks, right, np.ones((1, len(trust))))[0]),
        auroc_interval=_percentiles(np.concatenate(areas)),
        brier=brier,
        brier_constant=brier_constant,
        brier_gain=brier_constant - brier,
        brier_gain_interval=_percentiles(np.concatenate(differences)),
        ece=metrics.ece(pairs, outcomes),
        ece_noise=metrics.ece_noise(pairs),
    )


def _auroc(ranks: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the AUROC (R,) of rows with ranks (n,), equal for ties, and weights (R, n).

    NaN where a resample has no right or no wrong row.
    """
    order = np.argsort(ranks, kind="stable")
    first = np.flatnonzero(np.diff(ranks[order], prepend=-1))
    positive = np.add.reduceat(weight[:, order] * right[order], first, axis=1)
    negative = np.add.reduceat(weight[:, order] * ~right[order], first, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    area = (positive * below).sum(1)
    return np.divide(area, pairs, out=np.full(len(area), np.nan), where=pairs > 0)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - metrics.LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
