r"""P(label right) from hidden states, fitted to rows whose true labels are known.

    r_i = [argmax_c w_ic = y_i],     P(r_i = 1 | x_i, w_i) = sigma(s z(x_i, w_i) + o)

z is the logistic regression of ``_logistic``; s and o are Platt's calibration, fitted to
cross-fitted z, so that the strength of the penalty does not decide how sure the trust is.

Sources: Uzunoglu, Zhang & Khashabi 2026, "Trust functions" (arXiv 2606.01000); Kadavath et al. 2022
(arXiv 2207.05221), P(IK). The paper reads the last hidden state of the *teacher* with a residual
MLP trained on class-reweighted BCE, and keeps the most trusted rows. Here the hidden states are any
that the caller has, in a run those of the untrained student; the weak probabilities are an input
as well; the model is linear, because a weak split has few wrong rows; and BCE is not reweighted,
because reweighted outputs are no probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast import metrics
from w2s_fast.errors import W2SError
from w2s_fast.trust import _logistic
from w2s_fast.trust._checks import (
    check_features,
    check_folds,
    check_number,
    check_probs,
    log_probs,
)
from w2s_fast.trust.scores import TrustScores, score_trust

MIN_ROWS = 10  # right rows, and wrong rows, that a trust model is fitted to


@dataclass(frozen=True, eq=False)
class TrustModel:
    """A fitted P(label right).

    Attributes:
        cross_fitted: (n,) float32 probabilities of the labelled rows, each by a model and a
            calibration without its fold.
        scores: Scores of ``cross_fitted``.
        n_classes: C of the probabilities.
    """

    cross_fitted: np.ndarray
    scores: TrustScores
    n_classes: int
    _fit: _logistic.Fit = field(repr=False)
    _scaling: _Scaling = field(repr=False)
    _platt: tuple[float, float] = field(repr=False)

    def predict(self, features: Any, probs: Any) -> np.ndarray:
        """Return P(label right), (N,) float32.

        Args:
            features: (N, D) hidden states of the same model and layer as in the fit.
            probs: (N, C) probabilities of the labels to be trusted, from the same source.

        Raises:
            W2SError: Features or probabilities do not fit the model.
        """
        x = check_features(features, len(self._scaling.mean))
        p = check_probs(probs, len(x))
        if p.shape[1] != self.n_classes:
            raise W2SError(
                f"probs have {p.shape[1]} classes; expected {self.n_classes}, those that the trust "
                "model was fitted to"
            )
        z = self._fit.logits(*self._scaling(x, p)).numpy()
        return _sigmoid(self._platt[0] * z + self._platt[1]).astype(np.float32)


def fit_trust(
    features: Any,
    probs: Any,
    right: Any,
    *,
    l2: float = 0.01,
    folds: int = 5,
    groups: Any = None,
    seed: int = 0,
) -> TrustModel:
    """Fit P(label right) to rows whose true labels are known.

    The probabilities must come from a model that was not trained on these rows: on its own
    training rows it is right too often.

    Args:
        features: (n, D) hidden states.
        probs: (n, C) class probabilities whose top class is the label.
        right: (n,) bool, whether the top class is right; or (n,) integers, the true classes.
        l2: Penalty, see ``_logistic``.
        folds: Parts that are cross-fitted.
        groups: (n,) names of groups of related rows, which are in one fold; None: every row is a
            group.
        seed: Seed of the folds and of the bootstrap.

    Raises:
        W2SError: Shapes or values do not fit; or fewer than 10 rows are right, or wrong.
    """
    x = check_features(features)
    p = check_probs(probs, len(x))
    event = _right(right, p)
    group = _groups(groups, len(x))
    l2 = check_number("l2", l2, 0)
    fold = _folds(group, event, check_folds(folds, int(group.max()) + 1), seed)
    _check_folds_have_both(event, fold)

    z = np.empty(len(x))
    constant = np.empty(len(x))
    for f in np.unique(fold):
        rest, own = fold != f, fold == f
        fitted, scaling = _fit(x[rest], p[rest], event[rest], l2)
        z[own] = fitted.logits(*scaling(x[own], p[own])).numpy()
        constant[own] = event[rest].mean()
    trust = np.empty(len(x))
    for f in np.unique(fold):
        rest, own = fold != f, fold == f
        slope, offset = _platt(z[rest], event[rest])
        trust[own] = _sigmoid(slope * z[own] + offset)
    fitted, scaling = _fit(x, p, event, l2)
    scores = score_trust(trust, constant, event, group, seed)
    return TrustModel(
        trust.astype(np.float32), scores, p.shape[1], fitted, scaling, _platt(z, event)
    )


@dataclass(frozen=True, eq=False)
class _Scaling:
    """Mean and deviation of features and log-odds over the rows of a fit."""

    mean: np.ndarray
    deviation: np.ndarray
    odds: tuple[float, float]

    def __call__(self, x: np.ndarray, p: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of ``Fit.logits``."""
        t = (_log_odds(p) - self.odds[0]) / self.odds[1]
        scaled = (x - self.mean) / self.deviation
        return torch.from_numpy(scaled), torch.from_numpy(t), torch.from_numpy(p.argmax(1))


def _fit(
    x: np.ndarray, p: np.ndarray, event: np.ndarray, l2: float
) -> tuple[_logistic.Fit, _Scaling]:
    deviation, odds = x.std(0), _log_odds(p)
    # A constant column says nothing; a tiny deviation would blow up rounding of other rows.
    deviation = np.where(deviation > 1e-6, deviation, np.inf)
    scaling = _Scaling(x.mean(0), deviation, (float(odds.mean()), float(odds.std()) or 1.0))
    inputs = scaling(x, p)
    target = torch.from_numpy(event.astype(np.float64))
    return _logistic.fit(*inputs, target, p.shape[1], l2), scaling


def _log_odds(p: np.ndarray) -> np.ndarray:
    """Return the log-odds (n,) of the top class."""
    top = np.take_along_axis(p, p.argmax(1)[:, None], 1)
    return (log_probs(top) - log_probs(1 - top))[:, 0]


def _platt(z: np.ndarray, event: np.ndarray) -> tuple[float, float]:
    """Return slope and offset of Platt's calibration; slope 0 where z orders rows wrongly."""
    fitted = metrics.fit_platt(np.stack([-z / 2, z / 2], 1), event.astype(np.int64), logits=True)
    if fitted.scale[0] <= 0:  # states that say nothing: cross-fitting then inverts the order
        share = (event.sum() + 1) / (len(event) + 2)
        return 0.0, float(np.log(share / (1 - share)))
    return float(fitted.scale[0]), float(fitted.shift[1] - fitted.shift[0])


def _sigmoid(z: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(z))


def _right(right: Any, p: np.ndarray) -> np.ndarray:
    """Return (n,) bool, with enough rows of each kind."""
    array = np.asarray(right)
    if array.dtype.kind == "b" and array.shape == (len(p),):
        event = array
    else:
        event = p.argmax(1) == metrics.checked_labels(right, *p.shape)
    n_right = int(event.sum())
    n_wrong = len(event) - n_right
    if min(n_right, n_wrong) < MIN_ROWS:
        raise W2SError(
            f"{n_right} labels are right and {n_wrong} are wrong; expected at least {MIN_ROWS} of "
            "each to learn when a label is right: give more labelled rows, or use no trust model"
        )
    return event


def _groups(groups: Any, n_rows: int) -> np.ndarray:
    """Return group numbers (n,) from 0."""
    if groups is None:
        return np.arange(n_rows)
    array = np.asarray(groups)
    if array.shape != (n_rows,):
        raise W2SError(f"groups have shape {array.shape}; expected ({n_rows},), a name per row")
    return np.unique(array, return_inverse=True)[1]


def _folds(group: np.ndarray, event: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return a fold (n,) per row: whole groups, and about the same share of right rows in each.

    Folds whose shares differ would bias cross-fitted scores: a fit without many right rows expects
    few, exactly for the fold that has them.
    """
    sizes = np.bincount(group)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    share = np.bincount(group, weights=event) / sizes
    order = shuffled[np.argsort(share[shuffled], kind="stable")]
    fold = np.empty(len(sizes), dtype=np.int64)
    fold[order] = np.arange(len(sizes)) % folds
    return fold[group]


def _check_folds_have_both(event: np.ndarray, fold: np.ndarray) -> None:
    for f in np.unique(fold):
        rest = event[fold != f]
        if rest.all() or not rest.any():
            raise W2SError(
                f"without fold {f} all labels are {'right' if rest.all() else 'wrong'}; expected "
                "both kinds in several groups of rows: give more groups, or groups=None"
            )
