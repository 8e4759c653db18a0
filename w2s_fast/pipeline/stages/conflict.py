"""What a conflict adds to a student's training: further rows, and an objective with its classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.training_set import TrainingSet

if TYPE_CHECKING:
    from w2s_fast.losses import Loss


def add_conflict_rows(ctx: Context, training_set: TrainingSet) -> TrainingSet:
    """Append pairs of the conflicting objective with their true labels, if the job has any.

    As many per row as the setting ``conflict_rows``, but not more than there are.
    """
    ratio = ctx.job.setting("conflict_rows")
    if ratio is None:
        return training_set
    examples = ctx.gold("conflict")
    n = min(len(examples), max(1, round(ratio * len(training_set.items))))
    chosen = np.sort(np.random.default_rng(ctx.seed).permutation(len(examples))[:n])
    pairs = examples.take(chosen.tolist())
    labels = ctx.kind.true_labels(pairs, ctx.n_classes)
    weight = training_set.weight
    if weight is not None:
        weight = np.concatenate([weight, np.ones(n, dtype=weight.dtype)])
    return replace(
        training_set,
        items=training_set.items.join(pairs.inputs),
        weak_labels=np.concatenate([training_set.weak_labels, labels]),
        weight=weight,
    )


def conflicting_loss(
    ctx: Context, loss: Loss, training_set: TrainingSet
) -> tuple[Loss, np.ndarray | None]:
    """Return the job's loss with its explicit conflict, and the true classes (N,) that it reads.

    Rows that are not of the transfer set have -100. Without a conflict the loss is returned as it
    is, without classes.
    """
    alpha = ctx.job.setting("conflict")
    if alpha is None:
        return loss, None
    from w2s_fast.losses.conflict import ExplicitConflict

    examples = ctx.gold("transfer")
    gold = dict(zip(examples.ids, examples.labels.tolist(), strict=True))
    classes = np.array([gold.get(i, -100) for i in training_set.items.ids], dtype=np.int64)
    return ExplicitConflict(loss=loss, alpha=alpha), classes
