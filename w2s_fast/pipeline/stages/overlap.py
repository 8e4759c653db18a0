"""Stage `overlap`: the overlap density of the transfer split."""

from __future__ import annotations

from typing import Any

from w2s_fast import metrics
from w2s_fast.errors import W2SError
from w2s_fast.files import write_json
from w2s_fast.pipeline.artifacts import LABELS, OVERLAP, read_probs
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.store import StageBuild

MOST_ROWS = 20_000  # compared with one another; the split is in random order, so the first will do


def overlap(ctx: Context, build: StageBuild) -> None:
    """Find the overlapping items from weak labels and stored hidden states.

    A diagnostic never ends a run: without a density, ``reason`` says why there is none.
    """
    weak = read_probs(ctx.input("labels") / LABELS, ctx.inputs("transfer").ids, ctx.n_classes)
    states = read_features(ctx.input("features"))[:MOST_ROWS]
    record: dict[str, Any] = {"n": min(len(weak), MOST_ROWS)}
    try:
        found = metrics.find_overlap(weak[:MOST_ROWS], states.float().numpy())
    except W2SError as err:
        record |= {"density": None, "hard_only": None, "reason": str(err)}
    else:
        hard = float(found.hard.mean())
        record |= {"density": found.density, "hard_only": hard, "reason": None}
    ctx.write(lambda: write_json(build.path / OVERLAP, record))
