"""Stage `boosting`: a round of SAMME over the weak split, whose true labels say what is wrong.

The labels that are judged were made by models trained without the row's fold, or by the model of
the round itself. True labels of the transfer set are not read.
"""

from __future__ import annotations

import numpy as np

from w2s_fast.methods._boosting import samme_round
from w2s_fast.pipeline.artifacts import BOOSTING_ROWS, BOOSTING_VOTE, LABELS, read_probs
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.training_set import boosted_weight, out_of_fold
from w2s_fast.store import StageBuild


def boosting(ctx: Context, build: StageBuild) -> None:
    """Store the vote of a weak model (1,) and the row weights (n_weak,) of the next, float32."""
    examples, names = ctx.gold("weak"), dict(ctx.job.inputs)
    before = boosted_weight(ctx)
    row_weight = np.ones(len(examples)) if before is None else before.astype(np.float64)
    if "own" in names:
        probs = read_probs(ctx.input("own") / LABELS, examples.ids, ctx.n_classes)
    else:
        probs = out_of_fold(ctx, examples.inputs)
    vote, row_weight = samme_round(probs.argmax(1) != examples.labels, row_weight, ctx.n_classes)

    def write() -> None:
        arrays = {BOOSTING_VOTE: np.array([vote]), BOOSTING_ROWS: row_weight}
        for name, values in arrays.items():
            np.save(build.path / name, values.astype(np.float32), allow_pickle=False)

    ctx.write(write)
