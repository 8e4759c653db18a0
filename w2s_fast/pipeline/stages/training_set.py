"""What a model is to learn: whose labels, of which rows, and which rows are kept to judge it by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.config import train_of
from w2s_fast.pipeline.artifacts import LABELS, TRANSCRIPTS
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.parquet import read_all_texts, read_labels, read_texts
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.tasks import Inputs

if TYPE_CHECKING:
    from w2s_fast.training.data import Encoded, RowData
    from w2s_fast.training.monitor import Watch

_HOLDOUT = 0.1  # share of the rows that decide when to stop


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a model is to learn.

    Attributes:
        items: N texts.
        targets: (N, C) class probabilities, or (N,) answers in words.
        weight: (N,) row weights, or None.
    """

    items: Inputs
    targets: np.ndarray
    weight: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Lesson:
        """The given rows, in order."""
        weight = None if self.weight is None else self.weight[rows]
        return Lesson(self.items.take(rows.tolist()), self.targets[rows], weight)


def lesson_of(ctx: Context) -> Lesson:
    """Whose labels the job learns: true ones for weak model and ceiling, else what came in."""
    in_words = ctx.task.kind == "generation"
    if ctx.job.stage in ("weak", "ceiling"):
        items = ctx.gold("weak" if ctx.job.stage == "weak" else "transfer")
        if (fold := ctx.job.setting("fold")) is not None:
            items = items.take(np.flatnonzero(folds(ctx, items) != fold).tolist())
        if in_words:
            return Lesson(items.inputs, np.array(items.answers, dtype=object))
        return Lesson(items.inputs, np.eye(ctx.n_classes, dtype=np.float32)[items.labels])
    transfer, path = ctx.inputs("transfer"), ctx.input("labels") / LABELS
    if in_words:
        return Lesson(transfer, np.array(read_texts(path, transfer.ids), dtype=object))
    probs, weight = read_labels(path, transfer.ids, ctx.n_classes)
    lesson = Lesson(transfer, probs, weight)
    if weight is None:
        return lesson
    kept = lesson.take(np.flatnonzero(weight))  # a row that does not count costs no step
    return replace(kept, weight=None) if (weight[weight > 0] == 1).all() else kept


def encoded(ctx: Context, tokenizer: Any, items: Inputs) -> Encoded:
    """The texts as the model of the job's role reads them."""
    from w2s_fast.training import encode

    length = train_of(ctx.cfg, ctx.job.setting("role")).max_length
    return encode(tokenizer, with_context(ctx, items), length, ctx.task.kind)


def with_context(ctx: Context, items: Inputs) -> Inputs:
    """The texts, each with its transcript behind it where the job's model reads some."""
    if "context" not in dict(ctx.job.inputs):
        return items
    found = read_all_texts(ctx.input("context") / TRANSCRIPTS)
    last = items.texts if items.pairs is None else items.pairs
    longer = tuple(f"{t}\n\n{found[i]}" for t, i in zip(last, items.ids, strict=True))
    return replace(items, **{"texts" if items.pairs is None else "pairs": longer})


def folds(ctx: Context, items: Inputs) -> np.ndarray:
    """(N,) 0 or 1: the half of each text of the weak model's half, the same for all its members."""
    return held_out(items.groups, 0.5, ctx.job.seed or 0).astype(np.int64)


def rows_of(ctx: Context, tokenizer: Any, items: Inputs, split: str) -> RowData:
    """Texts of a split as the model of the job reads them: a frozen one from the cache."""
    if not ctx.job.setting("freeze"):
        return encoded(ctx, tokenizer, items)
    from w2s_fast.probing.feature_cache import CachedRows

    place = {name: row for row, name in enumerate(ctx.inputs(split).ids)}
    return CachedRows(read_features(ctx.input(split))[[place[name] for name in items.ids]])


def rows_and_targets(ctx: Context, tokenizer: Any, lesson: Lesson) -> tuple[RowData, np.ndarray]:
    """A lesson as ``training.train`` takes it; answers in words become the tokens to predict."""
    if ctx.task.kind != "generation":
        return rows_of(ctx, tokenizer, lesson.items, "transfer"), lesson.targets
    from w2s_fast.training.completions import encode_answers

    length = train_of(ctx.cfg, ctx.job.setting("role")).max_length
    rows = encode_answers(tokenizer, lesson.items.texts, lesson.targets.tolist(), length)
    return rows, rows.labels


def watched(ctx: Context, lesson: Lesson, tokenizer: Any) -> tuple[Lesson, Watch | None]:
    """The rows to learn, and what is looked at while they are learned."""
    from w2s_fast.training.monitor import Watch

    keep = ctx.job.setting("keep", "last")
    if keep == "last":
        if not ctx.job.setting("record"):
            return lesson, None
        return lesson, Watch(rows_of(ctx, tokenizer, ctx.inputs("transfer"), "transfer"))
    held = held_out(lesson.items.groups, ctx.job.setting("holdout", _HOLDOUT), ctx.seed)
    part = lesson.take(np.flatnonzero(held))
    wanted = part.targets.argmax(1)
    if keep == "gold":
        gold = dict(zip(ctx.gold("transfer").ids, ctx.gold("transfer").labels, strict=True))
        wanted = np.array([gold[i] for i in part.items.ids])
    watch = Watch(
        rows_of(ctx, tokenizer, part.items, "transfer"),
        score=lambda probs: float((probs.argmax(1) == wanted).mean()),
        keep="best",
    )
    return lesson.take(np.flatnonzero(~held)), watch


def held_out(groups: tuple[str, ...], share: float, seed: int) -> np.ndarray:
    """(N,) bool: about ``share`` of the rows, groups whole, the same for the same seed."""

    def place(group: str) -> float:
        digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    places = np.array([place(g) for g in groups])
    return places <= np.quantile(places, share)
