"""Predictions of a split, written in parts, so that finished parts survive a kill."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from w2s_fast.config import train_of
from w2s_fast.files import content_hash, file_hash, write_bytes
from w2s_fast.metrics import Calibrator
from w2s_fast.pipeline.artifacts import LABELS, OOD, TEST, part_name
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import trained_model, whole_model
from w2s_fast.pipeline.stages.calibration import read_calibration
from w2s_fast.pipeline.stages.training_set import model_rows
from w2s_fast.store import StageBuild, StoreWarning
from w2s_fast.tasks import Inputs

PART_ROWS = 20_000  # items per file of labels, and the most that a kill can cost


def labels(ctx: Context, build: StageBuild) -> None:
    """Label a split with a trained model: class probabilities, or completions.

    The parts are the same for any number of processes.
    """
    model, tokenizer = trained_model(ctx, ctx.input("model"))
    split = ctx.job.setting("split")
    items, calibrator = ctx.inputs(split), _calibrator(ctx)

    def write(rows: range, path: Path) -> None:
        predict_split(ctx, model, tokenizer, items.take(rows), split, path, calibrator)

    write_parts(ctx, build, LABELS, items, PART_ROWS, write)


def _calibrator(ctx: Context) -> Calibrator | None:
    if "calibrator" not in dict(ctx.job.inputs):
        return None
    return read_calibration(ctx.input("calibrator"))[0]


def predict_split(
    ctx: Context,
    model: Any,
    tokenizer: Any,
    items: Inputs,
    split: str,
    path: Path,
    calibrator: Calibrator | None = None,
) -> None:
    """Predict items of a split and write the predictions, calibrated if asked, to ``path``."""
    kind = ctx.kind
    length = train_of(ctx.cfg, ctx.job.setting("role")).max_length
    rows = model_rows(ctx, tokenizer, items, split)
    predictions: Any = kind.predict(model, tokenizer, rows, length, ctx.cfg.task.answer_tokens)
    if calibrator is not None:
        predictions = calibrator(predictions)
    ctx.write(lambda: kind.write(path, items.ids, predictions))


def predict_test(ctx: Context, build: StageBuild, model: Any, tokenizer: Any) -> None:
    """Predict the test items with the model that a stage has made and saved.

    A model that reads transcripts is left out: test items have none.
    """
    if "context" in dict(ctx.job.inputs):
        return
    predict_split(ctx, model, tokenizer, ctx.inputs("test"), "test", build.path / TEST)
    if ctx.has_ood:
        if ctx.job.setting("freeze"):  # no states of these items are cached
            model, tokenizer = whole_model(ctx, build.path)
        predict_split(ctx, model, tokenizer, ctx.inputs("ood"), "ood", build.path / OOD)


def write_parts(
    ctx: Context,
    build: StageBuild,
    name: str,
    items: Inputs,
    part_rows: int,
    write: Callable[[range, Path], None],
) -> None:
    """Call ``write`` for every part of ``items`` that is not finished yet, and publish all parts.

    The checksum of a part is written after it, so a part without one is not finished. All processes
    call this together.

    Args:
        ctx: Context of the stage.
        build: The stage; its checkpoint keeps the parts until all are finished.
        name: Name of their folder in the finished stage.
        items: N texts.
        part_rows: Rows per part.
        write: Called with row numbers and the file that is to hold them.
    """
    starts = range(0, len(items), part_rows)
    folder = build.checkpoint / name
    if ctx.world.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(starts):
        rows = range(start, min(start + part_rows, len(items)))
        part, ids = folder / part_name(i), [items.ids[r] for r in rows]
        record = build.checkpoint / f"{part.name}.sha256"
        done = ctx.world.is_main_process and _is_finished(part, record, ids)
        if not ctx.world.broadcast_object(done):
            write(rows, part)
            ctx.write(functools.partial(_record, part, record, ids))
        ctx.progress(i + 1, len(starts), 0.0)
    ctx.write(lambda: os.replace(folder, build.path / name))


def _is_finished(part: Path, record: Path, ids: Sequence[str]) -> bool:
    """Return whether a part holds what was written for these items; warn if it is damaged."""
    if not (part.is_file() and record.is_file()):
        return False
    if record.read_bytes() == _checksum(part, ids):
        return True
    text = f"{part} differs from its checksum; computing it again"
    warnings.warn(text, StoreWarning, stacklevel=2)
    return False


def _record(part: Path, record: Path, ids: Sequence[str]) -> None:
    write_bytes(record, _checksum(part, ids))


def _checksum(part: Path, ids: Sequence[str]) -> bytes:
    return content_hash([file_hash(part), list(ids)]).encode()
