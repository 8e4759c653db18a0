"""Stage `calibration`: fit a calibrator of the weak labels to the weak split, cross-fitted.

The weak model was trained on that split and is overconfident there. So each text is predicted by a
model that was trained without its fold, and the calibrator is fitted to these predictions. It is
applied to the model of all folds, as in scikit-learn's ``CalibratedClassifierCV(ensemble=False)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.errors import W2SError
from w2s_fast.files import write_json
from w2s_fast.pipeline.artifacts import CALIBRATION
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.training_set import folds, out_of_fold
from w2s_fast.store import StageBuild

Fit = Callable[[np.ndarray, np.ndarray], metrics.Calibrator]


def calibration(ctx: Context, build: StageBuild) -> None:
    """Fit the calibrator, and score the predictions before and after it."""
    examples = ctx.gold("weak")
    probs, labels = out_of_fold(ctx, examples.inputs), examples.labels
    rule = ctx.job.setting("rule")
    fit = metrics.CALIBRATORS[rule]
    try:
        calibrator = fit(probs, labels)
    except W2SError as err:
        raise W2SError(
            f"weak_calibration={rule!r} cannot be fitted to the weak split: {err}"
        ) from err
    fold = folds(ctx, examples.inputs, len(ctx.job.inputs))
    after = _cross_fitted(probs, labels, fold, fit)
    record = {
        "rule": rule,
        "scale": calibrator.scale,
        "shift": calibrator.shift,
        "n": len(labels),
        "folds": len(ctx.job.inputs),
        "accuracy": metrics.accuracy(probs, labels),
        "before": _scores(probs, labels),
        "after": None if after is None else _scores(after, labels),
    }
    ctx.write(lambda: write_json(build.path / CALIBRATION, record))


def read_calibration(folder: Path) -> tuple[metrics.Calibrator, dict[str, Any]]:
    """Return the calibrator of a finished stage and its record."""
    record = json.loads((folder / CALIBRATION).read_bytes())
    return metrics.Calibrator(tuple(record["scale"]), tuple(record["shift"])), record


def _cross_fitted(
    probs: np.ndarray, labels: np.ndarray, fold: np.ndarray, fit: Fit
) -> np.ndarray | None:
    """Return the probabilities after calibrators that were fitted without their fold.

    None if a class occurs in one fold alone, so that one of the fits is not possible.
    """
    after = np.empty(probs.shape, dtype=np.float32)
    for i in np.unique(fold):
        try:
            after[fold == i] = fit(probs[fold != i], labels[fold != i])(probs[fold == i])
        except W2SError:
            return None
    return after


def _scores(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "ece": metrics.ece(probs, labels),
        "ece_noise": metrics.ece_noise(probs),
        "nll": metrics.nll(probs, labels),
        "brier": metrics.brier(probs, labels),
    }
