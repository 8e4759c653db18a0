"""Stage `transcripts`: what the strong model, or an endpoint, argues about every text of a split.

It is given texts and names of classes. True labels it cannot have (``Context.gold`` refuses), and
where a protocol asks what the weak model thinks of a text, one answers that did not learn it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from w2s_fast.config import RunConfig
from w2s_fast.debate import EndpointWriter, LocalWriter, Writer, make_protocol
from w2s_fast.errors import W2SError
from w2s_fast.methods import Node
from w2s_fast.pipeline.artifacts import LABELS, TRANSCRIPTS, read_probs, write_texts
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import language_model
from w2s_fast.pipeline.stages.method_inputs import as_questions, class_words
from w2s_fast.pipeline.stages.predict import write_parts
from w2s_fast.pipeline.stages.training_set import folds
from w2s_fast.pipeline.students import students
from w2s_fast.store import Building
from w2s_fast.tasks import Inputs

PART_ROWS = 256  # items of one file; what a kill costs a language model in this process


def transcripts(ctx: Context, build: Building) -> None:
    """Write one transcript a text: Parquet files of ``id`` and ``text``."""
    protocol = make_protocol(ctx.job.setting("protocol"))
    items = ctx.inputs(ctx.job.setting("split"))
    questions, weak = as_questions(ctx, items, "").texts, _weak(ctx, items)
    verdicts = [word.strip() for word in class_words(ctx)]
    writer, folder = _writer(ctx, build.checkpoint), build.checkpoint / TRANSCRIPTS

    def write(rows: range, path: Path) -> None:
        ids = [items.ids[r] for r in rows]
        picked = None if weak is None else weak[list(rows)]
        part = [questions[r] for r in rows]
        texts = protocol.transcripts(part, ids, verdicts, writer, ctx.seed, picked)
        ctx.write(lambda: write_texts(path, ids, texts))

    write_parts(ctx, items, PART_ROWS, folder, write)
    ctx.write(lambda: os.replace(folder, build.path / TRANSCRIPTS))


def _weak(ctx: Context, items: Inputs) -> np.ndarray | None:
    """(N, C) what the weak model says of texts that it did not learn; None if nobody asks."""
    inputs = dict(ctx.job.inputs)
    names = [name for name in ("weak", "fold0", "fold1") if name in inputs]
    if not names:
        return None
    found = [read_probs(ctx.input(name) / LABELS, items.ids, ctx.n_classes) for name in names]
    if names == ["weak"]:
        return found[0]
    return np.where(folds(ctx, items)[:, None] == 0, *found)


def _writer(ctx: Context, folder: Path) -> Writer:
    cfg = ctx.cfg.transcript_writer
    if cfg.kind == "local":
        model, tokenizer = language_model(ctx)
        return LocalWriter(model, tokenizer, cfg)
    return _together(ctx, EndpointWriter(cfg, folder, ctx.world.rank))


def _together(ctx: Context, writer: Writer) -> Writer:
    """Every process asks for its share; what one could not get is an error on all of them."""
    world = ctx.world
    if world.size == 1:
        return writer

    def write(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        mine = slice(world.rank, None, world.size)
        try:
            told = ["", *writer(prompts[mine], seeds[mine])]
        except W2SError as e:
            told = [str(e)]
        everyone = world.all_gather_object(told)
        if error := next((error for error, *_ in everyone if error), ""):
            raise W2SError(error)
        return [everyone[i % world.size][1 + i // world.size] for i in range(len(prompts))]

    return write


def check_writer(cfg: RunConfig) -> None:
    """Refuse a run whose transcripts nobody could write, before anything is computed.

    Raises:
        W2SError: the endpoint's key is not set, or the student is no language model to write with.
    """
    roots = [node for student in students(cfg) for node in student.nodes(cfg)]
    if not any(node.stage == "transcripts" for node in _all(roots)):
        return
    if cfg.transcript_writer.kind == "endpoint":
        cfg.transcript_writer.key()
        return
    from w2s_fast.tasks.datasets.agreement import MAX_LENGTH

    source, room = cfg.student.source, cfg.transcript_writer.max_tokens
    if source in ("bow", "scratch"):
        raise W2SError(
            f"a method wants texts by the student's language model, and student.source={source!r} "
            "is none; give the folder of a checkpoint, or transcript_writer.kind=endpoint"
        )
    if source == "agreement-lm" and room >= MAX_LENGTH:
        raise W2SError(
            f"transcript_writer.max_tokens={room}: the language model of task 'agreement' reads "
            f"{MAX_LENGTH} tokens, prompt and answer together; use at most half of that"
        )


def _all(nodes: list[Node]) -> Iterator[Node]:
    waiting, seen = list(nodes), set[Node]()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [needed for _, needed in node.needs]
            yield node
