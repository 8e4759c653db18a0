"""Rows that a training evaluates: held out to stop early, or to record how they are fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.config import train_of
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.training_set import (
    TrainingSet,
    group_split,
    model_rows,
    shared_holdout,
)
from w2s_fast.tasks import Inputs

if TYPE_CHECKING:
    from w2s_fast.training.monitor import Watch

_HOLDOUT = 0.1  # share of the rows that decide when to stop
FIT_ROWS = 2000  # most rows of the training set whose predictions are recorded


@dataclass(frozen=True, eq=False)
class WatchedRows:
    """What a training learns and evaluates.

    Attributes:
        training_set: The rows to train on.
        watch: For ``train``; None: nothing is evaluated.
        fitted: Rows of the training set whose predictions are kept: the last ones of ``watch``.
            None: none are.
        held_out: Rows that a training leaves out to choose among its results; None: none are.
    """

    training_set: TrainingSet
    watch: Watch | None = None
    fitted: Inputs | None = None
    held_out: TrainingSet | None = None


def watched_rows(ctx: Context, training_set: TrainingSet, tokenizer: Any) -> WatchedRows:
    """Return the rows to train on, and the rows to evaluate during training.

    ``record`` evaluates the whole transfer set. Early stopping (``keep``) holds rows out and keeps
    the weights with the highest accuracy on them, by their weak or their true labels;
    ``select_width`` holds the same rows out. ``fit``
    evaluates rows of the training set that many times, or as often as ``keep`` does.
    """
    from w2s_fast.training import Watch

    if ctx.job.setting("record"):
        items = ctx.inputs("transfer")
        return WatchedRows(training_set, Watch(model_rows(ctx, tokenizer, items, "transfer")))
    keep, evaluations = ctx.job.setting("keep", "last"), ctx.job.setting("fit")
    training_set, evaluation = _held_out(ctx, training_set, keep)
    if keep == "last":
        if not evaluations:
            return WatchedRows(training_set, held_out=evaluation)
        fitted = _sample(ctx, training_set)
        steps = train_of(ctx.cfg, ctx.job.setting("role")).steps(len(training_set.items))
        watch = Watch(
            model_rows(ctx, tokenizer, fitted, "transfer"), every=-(-steps // evaluations)
        )
        return WatchedRows(training_set, watch, fitted, evaluation)
    assert evaluation is not None
    expected = _expected(ctx, evaluation, keep)
    recorded = _sample(ctx, training_set) if evaluations else None
    items = evaluation.items if recorded is None else _joined(ctx, evaluation.items, recorded)
    watch = Watch(
        model_rows(ctx, tokenizer, items, "transfer"),
        score=lambda probs: float((probs[: len(expected)].argmax(1) == expected).mean()),
        keep="best",
    )
    return WatchedRows(training_set, watch, recorded, evaluation)


def _held_out(
    ctx: Context, training_set: TrainingSet, keep: str
) -> tuple[TrainingSet, TrainingSet | None]:
    """Return the rows to train on, and those that are held out for this training's own choices.

    Rows that are held out for a later stage are in neither.
    """
    chooses = keep != "last" or ctx.job.setting("select_width")
    if not chooses and not ctx.job.setting("holdout"):
        return training_set, None
    if ctx.job.setting("shared_holdout") or not chooses:
        held_out = shared_holdout(ctx, training_set)
    else:
        share = ctx.job.setting("holdout", _HOLDOUT)
        held_out = group_split(training_set.items.groups, share, ctx.seed)
    rest = training_set.take(np.flatnonzero(~held_out))
    return rest, training_set.take(np.flatnonzero(held_out)) if chooses else None


def _expected(ctx: Context, evaluation: TrainingSet, keep: str) -> np.ndarray:
    """Return the classes (M,) that the score counts as right."""
    if keep != "gold":
        return evaluation.weak_labels.argmax(1)
    gold = dict(zip(ctx.gold("transfer").ids, ctx.gold("transfer").labels, strict=True))
    return np.array([gold[i] for i in evaluation.items.ids])


def _sample(ctx: Context, training_set: TrainingSet) -> Inputs:
    """Return up to ``FIT_ROWS`` rows of the training set, drawn by the seed."""
    n = len(training_set.items)
    rows = np.random.default_rng(ctx.seed).permutation(n)[:FIT_ROWS]
    return training_set.items.take(np.sort(rows).tolist())


def _joined(ctx: Context, first: Inputs, second: Inputs) -> Inputs:
    """Return the items of both, which are of the transfer set."""
    items = ctx.inputs("transfer")
    row_of = {name: row for row, name in enumerate(items.ids)}
    return items.take([row_of[name] for name in (*first.ids, *second.ids)])
