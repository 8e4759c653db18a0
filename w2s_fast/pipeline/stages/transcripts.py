"""Stage `transcripts`: arguments about every text of a split, by a language model or an endpoint.

The writer reads texts and class names, never true labels. If a protocol shows it the weak model's
prediction, that prediction comes from a weak model that was not trained on the text. Critiques
continue transcripts of another stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from w2s_fast.debate import EndpointWriter, LocalWriter, Writer, WriterConfig, make_protocol
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.artifacts import LABELS, TRANSCRIPTS, read_probs, read_texts, write_texts
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import pretrained_model
from w2s_fast.pipeline.stages.method_inputs import as_questions, class_words
from w2s_fast.pipeline.stages.predict import write_parts
from w2s_fast.pipeline.stages.training_set import out_of_fold
from w2s_fast.store import StageBuild
from w2s_fast.tasks import Inputs

PART_ROWS = 256  # items per file, and the most that a kill can cost


def transcripts(ctx: Context, build: StageBuild) -> None:
    """Write one transcript per text."""
    protocol = make_protocol(ctx.job.setting("protocol"))
    items = ctx.inputs(ctx.job.setting("split"))
    questions, weak_labels = as_questions(ctx, items, "").texts, _weak_labels(ctx, items)
    before = _before(ctx, items)
    verdicts = [word.strip() for word in class_words(ctx)]
    cfg = ctx.cfg.critic_writer if protocol.by_critic else ctx.cfg.transcript_writer
    writer = _writer(ctx, cfg, build.checkpoint)

    def write(rows: range, path: Path) -> None:
        ids = [items.ids[r] for r in rows]
        part_labels = None if weak_labels is None else weak_labels[list(rows)]
        part = [questions[r] for r in rows]
        so_far = None if before is None else [before[item] for item in ids]
        texts = protocol.transcripts(
            part, ids, verdicts, writer, ctx.seed, part_labels, before=so_far
        )
        ctx.write(lambda: write_texts(path, ids, texts))

    write_parts(ctx, build, TRANSCRIPTS, items, PART_ROWS, write)


def _weak_labels(ctx: Context, items: Inputs) -> np.ndarray | None:
    """Return the weak model's predictions (N, C), cross-fitted on its own split, or None."""
    inputs = dict(ctx.job.inputs)
    if "weak" in inputs:
        return read_probs(ctx.input("weak") / LABELS, items.ids, ctx.n_classes)
    return out_of_fold(ctx, items) if "fold0" in inputs else None


def _before(ctx: Context, items: Inputs) -> dict[str, str] | None:
    """Return the transcripts that the protocol continues, by id; None without input ``before``."""
    if "before" not in dict(ctx.job.inputs):
        return None
    return read_texts(ctx.input("before") / TRANSCRIPTS, items.ids)


def _writer(ctx: Context, cfg: WriterConfig, folder: Path) -> Writer:
    if cfg.kind == "local":
        model, tokenizer = pretrained_model(ctx, "generation")
        return LocalWriter(model, tokenizer, cfg)
    return _distribute(ctx, EndpointWriter(cfg, folder, ctx.world.rank))


def _distribute(ctx: Context, writer: Writer) -> Writer:
    """Let every process request its share of the texts; an error of one raises on all of them."""
    world = ctx.world
    if world.size == 1:
        return writer

    def write(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        mine = slice(world.rank, None, world.size)
        try:
            reply = ["", *writer(prompts[mine], seeds[mine])]
        except W2SError as e:
            reply = [str(e)]
        replies = world.all_gather_object(reply)
        if error := next((error for error, *_ in replies if error), ""):
            raise W2SError(error)
        return [replies[i % world.size][1 + i // world.size] for i in range(len(prompts))]

    return write
