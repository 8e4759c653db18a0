"""Stage `gate`: select supervisors by the true labels of the weak split.

Every text has the votes of sources that learned without its fold. True labels of the transfer set
are not read.
"""

from __future__ import annotations

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.files import write_json
from w2s_fast.pipeline.artifacts import GATE, VOTES, read_votes
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.training_set import folds
from w2s_fast.store import StageBuild
from w2s_fast.trust import fit_source_gate


def gate(ctx: Context, build: StageBuild) -> None:
    """Fit the gate to all rows, or to those outside of a fold, and store which sources it keeps."""
    examples, n_folds = ctx.gold("weak"), ctx.job.setting("folds")
    fold = folds(ctx, examples.inputs, n_folds)
    names, votes = _cross_fitted_votes(ctx, examples.ids, fold)
    rows = np.arange(len(examples))
    if (left_out := ctx.job.setting("fold")) is not None:
        rows = np.flatnonzero(fold != left_out)
    try:
        fitted = fit_source_gate(
            votes[rows], examples.labels[rows], ctx.n_classes, seed=ctx.job.seed or 0
        )
    except W2SError as err:
        raise W2SError(f"supervisors.gate=true: no gate fits the weak split: {err}") from err
    record = {"names": names, "kept": fitted.kept.tolist(), "weights": fitted.weights.tolist()}
    ctx.write(lambda: write_json(build.path / GATE, record))


def _cross_fitted_votes(
    ctx: Context, ids: tuple[str, ...], fold: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Return names (m) and votes (N, m), row by row of the sources without the row's fold."""
    every: dict[str, tuple[list[str], list[np.ndarray]]] = {}
    for argument, _ in ctx.job.inputs:
        names, votes = read_votes(ctx.input(argument) / VOTES, ids)
        known = every.setdefault(argument.partition("_")[0], ([], []))
        known[0].extend(names)
        known[1].append(votes)
    matrices = np.stack([np.concatenate(parts, 1) for _, parts in every.values()])
    return every["fold0"][0], matrices[fold, np.arange(len(fold))]
