"""The training set of a stage: its texts and labels, and the folds of the weak split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.config import train_of
from w2s_fast.errors import W2SError
from w2s_fast.methods import TextLabels
from w2s_fast.pipeline.artifacts import (
    BOOSTING_ROWS,
    LABEL_REPORT,
    LABELS,
    PAIR_LOGPROB,
    TRANSCRIPTS,
    read_probs,
    read_texts,
)
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.pipeline.text_files import read_text_labels
from w2s_fast.tasks import Examples, Inputs

if TYPE_CHECKING:
    from w2s_fast.training.data import RowData


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Texts with the labels that a model learns.

    Attributes:
        items: N texts.
        weak_labels: (N, C) class probabilities, (N,) completions, or (N, 2) pairs of completions;
            for weak model and ceiling the true labels in the same form.
        weight: (N,) row weights; None: all rows weigh the same.
        q: (N, 2) float32 probabilities that each completion of a pair is the better one; None
            unless the labels are pairs.
    """

    items: Inputs
    weak_labels: np.ndarray
    weight: np.ndarray | None = None
    q: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> TrainingSet:
        """Return the given rows, in order."""
        weight = None if self.weight is None else self.weight[rows]
        q = None if self.q is None else self.q[rows]
        return TrainingSet(self.items.take(rows.tolist()), self.weak_labels[rows], weight, q)

    def encode(self, ctx: Context, tokenizer: Any) -> tuple[RowData, np.ndarray]:
        """Return the rows as the job's model reads them, and their labels, for ``train``."""
        if ctx.job.setting("freeze"):
            return model_rows(ctx, tokenizer, self.items, "transfer"), self.weak_labels
        kind, length = ctx.kind, max_length(ctx)
        if self.q is not None:
            from w2s_fast.training import encode_pairs

            first, second = self.weak_labels.T.tolist()
            return encode_pairs(tokenizer, self.items.texts, first, second, length), self.q
        items = add_transcripts(ctx, self.items)
        rows, weak_labels = kind.encode_labelled(tokenizer, items, self.weak_labels, length)
        split = "weak" if ctx.job.stage == "weak" else "transfer"
        return add_logprob(ctx, rows, items, split), weak_labels


def load_training_set(ctx: Context) -> TrainingSet:
    """Return what the job learns: true labels for weak model and ceiling, else its input labels.

    Rows of weight 0 are left out, so they take no step.
    """
    kind = ctx.kind
    if ctx.job.stage in ("weak", "ceiling"):
        examples = ctx.gold("weak" if ctx.job.stage == "weak" else "transfer")
        labels, weight = kind.true_labels(examples, ctx.n_classes), boosted_weight(ctx)
        learned = TrainingSet(examples.inputs, labels, weight)
        if (fold := ctx.job.setting("fold")) is not None:
            learned = learned.take(_without_fold(ctx, examples, fold))
        return learned
    items = ctx.inputs("transfer")
    if (ctx.input("labels") / LABEL_REPORT).exists():
        return _text_training_set(ctx, items)
    path = ctx.input("labels") / LABELS
    weak_labels, weight = kind.read_weak_labels(path, items.ids, ctx.n_classes)
    training_set = TrainingSet(items, weak_labels, weight)
    if weight is None:
        return training_set
    weighted = training_set.take(np.flatnonzero(weight))
    return replace(weighted, weight=None) if (weight[weight > 0] == 1).all() else weighted


def _text_training_set(ctx: Context, items: Inputs) -> TrainingSet:
    """Return the completions, or pairs of them, that a method has made."""
    labels = read_text_labels(ctx.input("labels"), items.ids)
    own = items.take(labels.rows.tolist())
    if isinstance(labels, TextLabels):
        return TrainingSet(own, np.array(labels.texts, dtype=object))
    if labels.prefixes is not None:
        texts = tuple(t + p for t, p in zip(own.texts, labels.prefixes, strict=True))
        own = replace(own, texts=texts)
    pairs = np.array([labels.chosen, labels.rejected], dtype=object).T
    return TrainingSet(own, pairs, q=labels.soft)


def boosted_weight(ctx: Context) -> np.ndarray | None:
    """Return the row weights (N,) of the weak split from a round of boosting; None without one."""
    if "boosting" not in dict(ctx.job.inputs):
        return None
    weight: np.ndarray = np.load(ctx.input("boosting") / BOOSTING_ROWS, allow_pickle=False)
    return weight


def _without_fold(ctx: Context, examples: Examples, fold: int) -> np.ndarray:
    """Return the rows of the weak split that are not in a fold, in order."""
    n_folds = ctx.job.setting("folds", 2)
    rows = np.flatnonzero(folds(ctx, examples.inputs, n_folds) != fold)
    if not len(rows):
        raise W2SError(
            f"the weak split has {len(set(examples.groups))} groups of related rows, too few to "
            f"leave one of {n_folds} folds out; use fewer folds or give it more groups"
        )
    return rows


def model_rows(ctx: Context, tokenizer: Any, items: Inputs, split: str) -> Any:
    """Return items of a split as the job's model reads them; a frozen one reads cached states.

    No states of out-of-distribution items are cached: a frozen model reads their texts.
    """
    if not ctx.job.setting("freeze") or split == "ood":
        kind = ctx.kind
        rows = kind.encode(tokenizer, add_transcripts(ctx, items), max_length(ctx))
        return add_logprob(ctx, rows, items, split)
    import torch

    from w2s_fast.probing.feature_cache import CachedRows

    splits, own = stored_rows(ctx, items, split)
    return CachedRows(torch.cat([read_features(ctx.input(s)) for s in splits])[own])


def add_logprob(ctx: Context, rows: Any, items: Inputs, split: str) -> Any:
    """Add the log-probabilities of the untrained model and of the weak ones to a policy's rows.

    Only those that the job's policy compares with, see ``Plan.referenced`` and ``Plan.targeted``.
    """

    def stored(name: str) -> np.ndarray:
        splits, own = stored_rows(ctx, items, split)
        files = [ctx.input(f"{name}_{s}") / PAIR_LOGPROB for s in splits]
        parts = [np.load(file, allow_pickle=False) for file in files]
        return np.asarray(np.concatenate(parts)[own])

    inputs = dict(ctx.job.inputs)
    if f"reference_{split}" in inputs:
        rows = rows.with_reference(stored("reference"))
    if f"weak_policy_{split}" in inputs:
        rows = rows.with_target(stored("weak_policy") - stored("weak_reference"))
    return rows


def stored_rows(ctx: Context, items: Inputs, split: str) -> tuple[list[str], list[int]]:
    """Return where the results of items are stored: in which splits, and in which of their rows.

    Items that are not of ``split`` are of ``conflict``, whose rows follow those of ``split``.
    """
    row_of = {item: row for row, item in enumerate(ctx.inputs(split).ids)}
    if all(item in row_of for item in items.ids):
        return [split], [row_of[item] for item in items.ids]
    further = {item: len(row_of) + row for row, item in enumerate(ctx.inputs("conflict").ids)}
    row_of = {**row_of, **further}
    return [split, "conflict"], [row_of[item] for item in items.ids]


def max_length(ctx: Context) -> int:
    """Return the number of tokens that the job's model reads of an example."""
    return train_of(ctx.cfg, ctx.job.setting("role")).max_length


def add_transcripts(ctx: Context, items: Inputs) -> Inputs:
    """Append each text's transcript, if the job's model reads transcripts."""
    if "context" not in dict(ctx.job.inputs):
        return items
    transcripts = read_texts(ctx.input("context") / TRANSCRIPTS)
    last = items.texts if items.pairs is None else items.pairs
    longer = tuple(f"{t}\n\n{transcripts[i]}" for t, i in zip(last, items.ids, strict=True))
    return replace(items, texts=longer) if items.pairs is None else replace(items, pairs=longer)


def out_of_fold(ctx: Context, items: Inputs) -> np.ndarray:
    """Return predictions (N, C) of the weak split, each by the model trained without its fold.

    The job's inputs ``fold0``, ``fold1`` and on are the labels of these models.
    """
    names = [name for name, _ in ctx.job.inputs if name.startswith("fold")]
    probs = [read_probs(ctx.input(name) / LABELS, items.ids, ctx.n_classes) for name in names]
    return np.stack(probs)[folds(ctx, items, len(names)), np.arange(len(items))]


def folds(ctx: Context, items: Inputs, n_folds: int = 2) -> np.ndarray:
    """Return the fold, 0 to ``n_folds`` - 1, of each text of the weak split (N,).

    Folds have about as many rows each, of whole groups, and are equal for all members.
    """
    positions = _positions(items.groups, ctx.job.seed or 0)
    cuts = np.quantile(positions, np.arange(1, n_folds) / n_folds)
    return (positions[:, None] <= cuts).sum(1)


def group_split(groups: tuple[str, ...], share: float, seed: int) -> np.ndarray:
    """Return (N,) bool: about ``share`` of the rows, whole groups, by a hash of seed and group."""
    positions = _positions(groups, seed)
    return positions <= np.quantile(positions, share)


def shared_holdout(ctx: Context, training_set: TrainingSet) -> np.ndarray:
    """Return (N,) bool: rows that the job holds out, the same for every member of a soup."""
    return group_split(training_set.items.groups, ctx.job.setting("holdout"), ctx.job.seed or 0)


def _positions(groups: tuple[str, ...], seed: int) -> np.ndarray:
    """Return a number in [0, 1) per row (N,), a hash of seed and group."""

    def position(group: str) -> float:
        digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    return np.array([position(g) for g in groups])
