"""The stages of a run: pure functions of settings, input folders and a seed, one folder each.

``weak`` learns true labels of the first half; ``labels`` applies it to the second half; ``student``
learns those soft labels, ``ceiling`` the true ones of the same half, ``control`` the soft ones
without pretraining. What methods need between them is in ``method_inputs``. All models are scored
on the same test items.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from w2s_fast.pipeline.artifacts import LABELS, PRETRAINED
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages import method_inputs, report, transcripts
from w2s_fast.pipeline.stages.build_model import trained_model
from w2s_fast.pipeline.stages.predict import in_parts, say
from w2s_fast.pipeline.stages.train import fit
from w2s_fast.store import Building

SHARD_ROWS = 20_000  # items of one file of weak labels; also what a kill can cost


def pretrain(ctx: Context, build: Building) -> None:
    """Make the embedded task's pretrained language model; it never sees a label."""
    from transformers.utils import logging

    from w2s_fast.tasks.datasets import agreement_lm

    logging.disable_progress_bar()  # of saving one small file; the run shows its own
    target = build.path / PRETRAINED
    ctx.write(lambda: agreement_lm.pretrain(target, ctx.cfg.task, ctx.seed, ctx.progress))


def labels(ctx: Context, build: Building) -> None:
    """Label a split: the full soft vector, or the answer, of every item, a shard at a time.

    Shards are the same whatever the number of processes, and a finished one survives a kill.
    """
    model, tokenizer = trained_model(ctx, ctx.input("model"))
    split = ctx.job.setting("split")
    items = ctx.inputs(split)

    def write(rows: range, path: Path) -> None:
        say(ctx, model, tokenizer, items.take(rows), split, path)

    in_parts(ctx, items, SHARD_ROWS, build.checkpoint, write)
    ctx.write(lambda: os.replace(build.checkpoint, build.path / LABELS))


STAGES: dict[str, Callable[[Context, Building], None]] = {
    "pretrain": pretrain,
    "weak": fit,
    "labels": labels,
    "intermediate": fit,
    "student": fit,
    "ceiling": fit,
    "control": fit,  # `new_model` leaves the pretrained weights out
    "tuned": method_inputs.tuned,
    "features": method_inputs.features,
    "prior": method_inputs.prior,
    "balance": method_inputs.balance,
    "transcripts": transcripts.transcripts,
    "trajectory": method_inputs.trajectory,
    "apply": method_inputs.apply,
    "report": report.report,
}
