"""Stage `trust`: P(label right) of the transfer set, fitted to the true labels of the weak split.

The labels of the weak split that are judged right or wrong were made by models that were not
trained on them: weak models trained without the fold, or the untrained student. True labels of the
transfer set are not read.
"""

from __future__ import annotations

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.files import write_json
from w2s_fast.methods import Targets
from w2s_fast.methods.elicit import calibrated
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.artifacts import LABELS, read_probs, read_weighted_probs
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.pipeline.stages.calibration import read_calibration
from w2s_fast.pipeline.stages.training_set import out_of_fold
from w2s_fast.store import StageBuild
from w2s_fast.tasks import Examples
from w2s_fast.trust import fit_trust


def trust(ctx: Context, build: StageBuild) -> None:
    """Store P(label right) (N,) float32 of the transfer set, and the scores of the trust model.

    Rows of weight 0 get 0.
    """
    examples = ctx.gold("weak")
    try:
        model = fit_trust(
            _states(ctx, "weak_features"),
            _judged(ctx, examples),
            examples.labels,
            l2=ctx.job.setting("l2"),
            folds=ctx.job.setting("folds"),
            groups=np.array(examples.groups),
            seed=ctx.job.seed or 0,
        )
    except W2SError as err:
        raise W2SError(f"no trust model can be fitted to the weak split: {err}") from err
    path = ctx.input("labels") / LABELS
    labels = Targets(*read_weighted_probs(path, ctx.inputs("transfer").ids, ctx.n_classes))
    values = np.zeros(len(labels.probs), dtype=np.float32)
    features = _states(ctx, "features")
    values[labels.used] = model.predict(features[labels.used], labels.probs[labels.used])
    record = {**model.scores.as_dict(), "n": len(examples.labels), "mean": float(values.mean())}

    def write() -> None:
        np.save(build.path / artifacts.TRUST, values, allow_pickle=False)
        write_json(build.path / artifacts.TRUST_SCORES, record)

    ctx.write(write)


def _states(ctx: Context, name: str) -> np.ndarray:
    return read_features(ctx.input(name)).float().numpy()


def _judged(ctx: Context, examples: Examples) -> np.ndarray:
    """Return the labels (n, C) of the weak split that are right or wrong."""
    names = dict(ctx.job.inputs)
    if "own" in names:
        own = read_probs(ctx.input("own") / LABELS, examples.ids, ctx.n_classes)
        gold = Targets(np.eye(ctx.n_classes, dtype=np.float32)[examples.labels])
        return calibrated(own, gold, ctx.job.setting("calibrate"))
    probs = out_of_fold(ctx, examples.inputs)
    if "calibrator" in names:  # the labels of the transfer set went through it
        return read_calibration(ctx.input("calibrator"))[0](probs)
    return probs
