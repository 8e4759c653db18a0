"""Predictions of a model for a split, a part at a time: what is finished survives a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from w2s_fast.config import train_of
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.parquet import is_whole, write_probs, write_texts
from w2s_fast.pipeline.stages.training_set import rows_of
from w2s_fast.tasks import Inputs


def in_parts(
    ctx: Context, items: Inputs, size: int, folder: Path, write: Callable[[range, Path], None]
) -> None:
    """Have ``write`` make one file of every ``size`` rows of ``items``, but of those that exist.

    Parts are the same whatever the number of processes, all of which call this together.

    Args:
        ctx: Of the stage.
        items: N texts.
        size: Rows of a part.
        folder: Where the files go; made if it is not there.
        write: Called with row numbers and the file that is to hold them.
    """
    starts = range(0, len(items), size)
    if ctx.here.first:
        folder.mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(starts):
        rows = range(start, min(start + size, len(items)))
        path = folder / f"part-{i:05d}.parquet"
        done = path.exists() and is_whole(path, [items.ids[r] for r in rows])
        if not ctx.here.share(done):
            write(rows, path)
        ctx.progress(i + 1, len(starts), 0.0)


def say(ctx: Context, model: Any, tokenizer: Any, items: Inputs, split: str, path: Path) -> None:
    """Let a model say its mind about ``items`` of a split and write it to ``path``."""
    if ctx.task.kind == "generation":
        from w2s_fast.training import generate

        length = train_of(ctx.cfg, ctx.job.setting("role")).max_length
        texts = generate(
            model, tokenizer, items.texts, ctx.cfg.task.answer_tokens, max_length=length
        )
        ctx.write(lambda: write_texts(path, items.ids, texts))
        return
    from w2s_fast.training import predict

    probs = predict(model, rows_of(ctx, tokenizer, items, split))
    ctx.write(lambda: write_probs(path, items.ids, probs))
