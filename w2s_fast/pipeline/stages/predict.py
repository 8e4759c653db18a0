"""Predictions of a split, written in parts, so that finished parts survive a kill."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from w2s_fast.config import train_of
from w2s_fast.pipeline.artifacts import LABELS, is_complete, part_name
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import trained_model
from w2s_fast.pipeline.stages.training_set import model_rows
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.store import StageBuild
from w2s_fast.tasks import Inputs

PART_ROWS = 20_000  # items per file of labels, and the most that a kill can cost


def labels(ctx: Context, build: StageBuild) -> None:
    """Label a split with a trained model: class probabilities, or completions.

    The parts are the same for any number of processes.
    """
    model, tokenizer = trained_model(ctx, ctx.input("model"))
    split = ctx.job.setting("split")
    items = ctx.inputs(split)

    def write(rows: range, path: Path) -> None:
        predict_split(ctx, model, tokenizer, items.take(rows), split, path)

    write_parts(ctx, items, PART_ROWS, build.checkpoint, write)
    ctx.write(lambda: os.replace(build.checkpoint, build.path / LABELS))


def predict_split(
    ctx: Context, model: Any, tokenizer: Any, items: Inputs, split: str, path: Path
) -> None:
    """Predict items of a split and write the predictions to ``path``."""
    kind = task_kind(ctx.task.kind)
    length = train_of(ctx.cfg, ctx.job.setting("role")).max_length
    rows = model_rows(ctx, tokenizer, items, split)
    predictions: Any = kind.predict(model, tokenizer, rows, length, ctx.cfg.task.answer_tokens)
    ctx.write(lambda: kind.write(path, items.ids, predictions))


def write_parts(
    ctx: Context, items: Inputs, part_rows: int, folder: Path, write: Callable[[range, Path], None]
) -> None:
    """Call ``write`` for every part of ``items`` whose file is not complete yet.

    All processes call this together.

    Args:
        ctx: Context of the stage.
        items: N texts.
        part_rows: Rows per part.
        folder: Folder of the files, created if it does not exist.
        write: Called with row numbers and the file that is to hold them.
    """
    starts = range(0, len(items), part_rows)
    if ctx.world.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(starts):
        rows = range(start, min(start + part_rows, len(items)))
        path = folder / part_name(i)
        done = path.exists() and is_complete(path, [items.ids[r] for r in rows])
        if not ctx.world.broadcast_object(done):
            write(rows, path)
        ctx.progress(i + 1, len(starts), 0.0)
