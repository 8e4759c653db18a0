"""Stages `votes` and `generated_votes`: the votes of one source for the texts of a split."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.pipeline.artifacts import LABELS, VOTES, read_probs, write_votes
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.pipeline.stages.training_set import folds
from w2s_fast.store import StageBuild
from w2s_fast.tasks import Inputs


def votes(ctx: Context, build: StageBuild) -> None:
    """Store the votes of a column of the data, of labelling functions or of a model."""
    items = ctx.inputs(ctx.job.setting("split"))
    with warnings.catch_warnings():
        if ctx.job.setting("split") != "transfer":  # a smaller split says less about a source
            warnings.simplefilter("ignore", DataWarning)
        names, matrix = _SOURCES[ctx.job.setting("source")](ctx, items)
    ctx.write(lambda: write_votes(build.path / VOTES, items.ids, names, matrix))


def _column(ctx: Context, items: Inputs) -> tuple[list[str], np.ndarray]:
    if items.votes is None:
        raise W2SError("task.votes is not set; name the column of the votes, or drop the source")
    return [f"votes[{j}]" for j in range(items.votes.shape[1])], items.votes


def _functions(ctx: Context, items: Inputs) -> tuple[list[str], np.ndarray]:
    from w2s_fast.labeling import apply_functions, load_functions

    functions = load_functions(ctx.job.setting("path"))
    matrix = apply_functions(functions, items.texts, items.pairs, n_classes=ctx.n_classes)
    return [function.name for function in functions], matrix.numpy()


def _weak_model(ctx: Context, items: Inputs) -> tuple[list[str], np.ndarray]:
    probs = read_probs(ctx.input("labels") / LABELS, items.ids, ctx.n_classes)
    member = ctx.job.setting("member")
    name = "weak" if not member else f"weak:member={member}"
    return [name], _top_class(probs, ctx.job.setting("threshold"))


def _label_words(ctx: Context, items: Inputs) -> tuple[list[str], np.ndarray]:
    from w2s_fast.labeling import label_word_votes

    probs = read_probs(ctx.input("labels") / LABELS, items.ids, ctx.n_classes)
    # Below 1 / C a threshold is no threshold.
    threshold = max(ctx.job.setting("threshold"), 1 / ctx.n_classes)
    matrix = label_word_votes(probs, threshold=threshold)
    return ["label_words"], np.asarray(matrix)[:, None]


_SOURCES = {
    "VoteColumn": _column,
    "Functions": _functions,
    "WeakModel": _weak_model,
    "LabelWords": _label_words,
}


def _top_class(probs: np.ndarray, threshold: float) -> np.ndarray:
    """Return the class with the highest probability (N, 1), -1 where that is below a threshold."""
    return np.where(probs.max(1) >= threshold, probs.argmax(1), -1)[:, None]


def generated_votes(ctx: Context, build: StageBuild) -> None:
    """Learn labelling functions from the weak split, without a fold if one is given."""
    from w2s_fast.labeling import make_generator

    examples, split = ctx.gold("weak"), ctx.job.setting("split")
    states = {s: read_features(ctx.input(s)).float().numpy() for s in {"weak", split}}
    rows = np.arange(len(examples))
    if (left_out := ctx.job.setting("fold")) is not None:
        rows = np.flatnonzero(folds(ctx, examples.inputs, ctx.job.setting("folds")) != left_out)
    generator: Any = make_generator(ctx.job.setting("generator"))
    functions = generator.fit(
        states["weak"][rows], examples.labels[rows], ctx.n_classes, seed=ctx.seed
    )
    matrix = np.asarray(functions.votes(states[split]))
    ids = ctx.inputs(split).ids
    ctx.write(lambda: write_votes(build.path / VOTES, ids, functions.names, matrix))
