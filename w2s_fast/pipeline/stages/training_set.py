"""The training set of a stage: its texts and labels, and the rows held out to stop early."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.config import train_of
from w2s_fast.pipeline.artifacts import LABELS, TRANSCRIPTS, read_texts
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.tasks import Inputs

if TYPE_CHECKING:
    from w2s_fast.training.data import RowData
    from w2s_fast.training.monitor import Watch

_HOLDOUT = 0.1  # share of the rows that decide when to stop


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Texts with the labels that a model learns.

    Attributes:
        items: N texts.
        weak_labels: (N, C) class probabilities, or (N,) completions; for weak model and ceiling
            the true labels in the same form.
        weight: (N,) row weights; None: all rows weigh the same.
    """

    items: Inputs
    weak_labels: np.ndarray
    weight: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> TrainingSet:
        """Return the given rows, in order."""
        weight = None if self.weight is None else self.weight[rows]
        return TrainingSet(self.items.take(rows.tolist()), self.weak_labels[rows], weight)

    def encode(self, ctx: Context, tokenizer: Any) -> tuple[RowData, np.ndarray]:
        """Return the rows as the job's model reads them, and their labels, for ``train``."""
        if ctx.job.setting("freeze"):
            return model_rows(ctx, tokenizer, self.items, "transfer"), self.weak_labels
        kind, length = task_kind(ctx.task.kind), max_length(ctx)
        items = add_transcripts(ctx, self.items)
        return kind.encode_labelled(tokenizer, items, self.weak_labels, length)


def load_training_set(ctx: Context) -> TrainingSet:
    """Return what the job learns: true labels for weak model and ceiling, else its input labels.

    Rows of weight 0 are left out, so they take no step.
    """
    kind = task_kind(ctx.task.kind)
    if ctx.job.stage in ("weak", "ceiling"):
        examples = ctx.gold("weak" if ctx.job.stage == "weak" else "transfer")
        if (fold := ctx.job.setting("fold")) is not None:
            examples = examples.take(np.flatnonzero(folds(ctx, examples) != fold).tolist())
        return TrainingSet(examples.inputs, kind.true_labels(examples, ctx.n_classes))
    items = ctx.inputs("transfer")
    path = ctx.input("labels") / LABELS
    weak_labels, weight = kind.read_weak_labels(path, items.ids, ctx.n_classes)
    training_set = TrainingSet(items, weak_labels, weight)
    if weight is None:
        return training_set
    weighted = training_set.take(np.flatnonzero(weight))
    return replace(weighted, weight=None) if (weight[weight > 0] == 1).all() else weighted


def model_rows(ctx: Context, tokenizer: Any, items: Inputs, split: str) -> Any:
    """Return items of a split as the job's model reads them; a frozen one reads cached states."""
    if not ctx.job.setting("freeze"):
        kind = task_kind(ctx.task.kind)
        return kind.encode(tokenizer, add_transcripts(ctx, items), max_length(ctx))
    from w2s_fast.probing.feature_cache import CachedRows

    row_of = {name: row for row, name in enumerate(ctx.inputs(split).ids)}
    return CachedRows(read_features(ctx.input(split))[[row_of[name] for name in items.ids]])


def max_length(ctx: Context) -> int:
    """Return the number of tokens that the job's model reads of an example."""
    return train_of(ctx.cfg, ctx.job.setting("role")).max_length


def add_transcripts(ctx: Context, items: Inputs) -> Inputs:
    """Append each text's transcript, if the job's model reads transcripts."""
    if "context" not in dict(ctx.job.inputs):
        return items
    transcripts = read_texts(ctx.input("context") / TRANSCRIPTS)
    column = "texts" if items.pairs is None else "pairs"
    last = items.texts if items.pairs is None else items.pairs
    longer = tuple(f"{t}\n\n{transcripts[i]}" for t, i in zip(last, items.ids, strict=True))
    return replace(items, **{column: longer})


def hold_out(
    ctx: Context, training_set: TrainingSet, tokenizer: Any
) -> tuple[TrainingSet, Watch | None]:
    """Return the rows to train on, and the rows to evaluate during training.

    ``record`` evaluates the whole transfer set. Early stopping (``keep``) holds rows out and keeps
    the weights with the highest accuracy on them, by their weak or their true labels.
    """
    from w2s_fast.training import Watch

    keep = ctx.job.setting("keep", "last")
    if keep == "last":
        if not ctx.job.setting("record"):
            return training_set, None
        return training_set, Watch(model_rows(ctx, tokenizer, ctx.inputs("transfer"), "transfer"))
    held_out = group_split(
        training_set.items.groups, ctx.job.setting("holdout", _HOLDOUT), ctx.seed
    )
    evaluation = training_set.take(np.flatnonzero(held_out))
    expected = evaluation.weak_labels.argmax(1)
    if keep == "gold":
        gold = dict(zip(ctx.gold("transfer").ids, ctx.gold("transfer").labels, strict=True))
        expected = np.array([gold[i] for i in evaluation.items.ids])
    watch = Watch(
        model_rows(ctx, tokenizer, evaluation.items, "transfer"),
        score=lambda probs: float((probs.argmax(1) == expected).mean()),
        keep="best",
    )
    return training_set.take(np.flatnonzero(~held_out)), watch


def folds(ctx: Context, items: Inputs) -> np.ndarray:
    """Return the fold, 0 or 1, of each text of the weak split (N,); equal for all members."""
    return group_split(items.groups, 0.5, ctx.job.seed or 0).astype(np.int64)


def group_split(groups: tuple[str, ...], share: float, seed: int) -> np.ndarray:
    """Return (N,) bool: about ``share`` of the rows, whole groups, by a hash of seed and group."""

    def position(group: str) -> float:
        digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    positions = np.array([position(g) for g in groups])
    return positions <= np.quantile(positions, share)
