"""The stages between weak labels and student that methods ask for: arrays in, arrays out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import train_of
from w2s_fast.errors import W2SError
from w2s_fast.methods import Targets, make_method
from w2s_fast.models.weights import gathered
from w2s_fast.pipeline import artifacts
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import (
    language_model,
    pretrained_model,
    read_features,
    save_backbone,
    save_language_model,
    trained_model,
)
from w2s_fast.pipeline.stages.training_set import add_transcripts, max_length
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.store import StageBuild
from w2s_fast.tasks import Inputs


def features(ctx: Context, build: StageBuild) -> None:
    """Store the hidden states of the untrained model at the label position, bf16 (N, D)."""
    from w2s_fast.probing.feature_cache import cache_features

    items, kind = ctx.inputs(ctx.job.setting("split")), ctx.task.kind
    if (class_index := ctx.job.setting("word")) is not None:
        # A question is one text, also about a pair of completions.
        items, kind = as_questions(ctx, items, class_words(ctx)[class_index]), "classification"
    model, tokenizer = pretrained_model(ctx, kind)
    layer = ctx.job.setting("layer")
    rows: Any = task_kind(kind).encode(tokenizer, items, max_length(ctx))
    cache_features(
        model,
        rows,
        build.path / artifacts.FEATURES,
        layer if layer in ("half", "last") else int(layer),
    )


def prior(ctx: Context, build: StageBuild) -> None:
    """Label with the untrained language model: probabilities of the class words."""
    from w2s_fast.training import next_token_probs

    model, tokenizer = pretrained_model(ctx, "generation")
    items = ctx.inputs(ctx.job.setting("split"))
    questions = as_questions(ctx, add_transcripts(ctx, items), "").texts
    probs = next_token_probs(model, tokenizer, questions, class_words(ctx))
    ctx.write(lambda: write_labels(build.path, items, Targets(probs)))


def balance(ctx: Context, build: StageBuild) -> None:
    """Store the true share of every class in the transfer set (C,)."""
    labels = ctx.gold("transfer").labels
    shares = np.bincount(labels, minlength=ctx.n_classes) / len(labels)
    ctx.write(lambda: np.save(build.path / artifacts.BALANCE, shares, allow_pickle=False))


def trajectory(ctx: Context, build: StageBuild) -> None:
    """Store the predictions (K, N, C) of the transfer set that a training recorded."""
    recorded = ctx.input("model") / artifacts.TRAJECTORY
    ctx.write(lambda: os.link(recorded, build.path / artifacts.TRAJECTORY))


def apply(ctx: Context, build: StageBuild) -> None:
    """Call a method's function with its input arrays, and store the labels it returns."""
    method = make_method(ctx.job.setting("method"))
    function = getattr(method, ctx.job.setting("function"))
    arrays = {name: _read(ctx, name) for name, _ in ctx.job.inputs}
    targets = function(**arrays, seed=ctx.seed)
    items = ctx.inputs("transfer")
    _check(ctx, f"{type(method).__name__}.{ctx.job.setting('function')}", targets, len(items))
    ctx.write(lambda: write_labels(build.path, items, targets))


def _check(ctx: Context, function: str, targets: Any, n: int) -> None:
    shape = (n, ctx.n_classes)
    if not isinstance(targets, Targets) or targets.probs.shape != shape:
        got = targets.probs.shape if isinstance(targets, Targets) else type(targets).__name__
        raise W2SError(f"{function} gave {got}; expected Targets with probs {shape}")
    weight = targets.weight
    if weight is not None and (weight.shape != (n,) or not (weight >= 0).all()):
        raise W2SError(
            f"{function} gave weights of shape {weight.shape}; expected ({n},), none negative"
        )


def _read(ctx: Context, name: str) -> Any:
    """Read an input by what its folder holds: labels, features or a single array."""
    folder = ctx.input(name)
    if (folder / artifacts.LABELS).exists():
        ids = ctx.inputs("transfer").ids
        return Targets(
            *artifacts.read_weighted_probs(folder / artifacts.LABELS, ids, ctx.n_classes)
        )
    if (folder / artifacts.FEATURES).exists():
        return read_features(folder).float().numpy()
    names = (
        artifacts.TRAJECTORY, artifacts.BALANCE, artifacts.TRUST, artifacts.BOOSTING_VOTE,
    )  # fmt: skip
    path = next(p for name in names if (p := folder / name).exists())
    return np.load(path, allow_pickle=False)


def write_labels(folder: Path, items: Inputs, targets: Targets) -> None:
    """Write labels of a split, in one part."""
    (folder / artifacts.LABELS).mkdir()
    artifacts.write_probs(
        folder / artifacts.LABELS / artifacts.part_name(0), items.ids, targets.probs, targets.weight
    )


def class_words(ctx: Context) -> tuple[str, ...]:
    """Return the word of each class for a language model: the task's, else " " and the name."""
    task = ctx.task
    return task.words or tuple(f" {name}" for name in task.class_names)


def as_questions(ctx: Context, items: Inputs, word: str) -> Inputs:
    """Return the texts in the task's prompt, each followed by ``word``."""
    pairs = items.pairs or ("",) * len(items)
    texts = tuple(
        ctx.task.prompt.replace("{text}", text).replace("{pair}", pair) + word
        for text, pair in zip(items.texts, pairs, strict=True)
    )
    return Inputs(items.ids, texts, None, items.groups)


def tuned(ctx: Context, build: StageBuild) -> None:
    """Train the language model on the transfer texts alone (Burns et al. 2023, §5.2.2)."""
    from w2s_fast.losses import make_loss
    from w2s_fast.training import train
    from w2s_fast.training.completions import encode_texts

    cfg = train_of(ctx.cfg, ctx.job.setting("role"))
    model, tokenizer = language_model(ctx)
    items = ctx.inputs("transfer")
    rows = encode_texts(tokenizer, [*items.texts, *(items.pairs or ())], cfg.max_length)
    train(
        model, rows, rows.labels, make_loss("xent"), cfg, ctx.seed,
        checkpoint_dir=build.checkpoint, progress=ctx.progress,
    )  # fmt: skip
    with gathered(model.parameters()):
        ctx.write(lambda: save_language_model(model, tokenizer, build.path / artifacts.PRETRAINED))


def backbone(ctx: Context, build: StageBuild) -> None:
    """Save the backbone of a trained student as a folder that ``model.source`` can name."""
    model, tokenizer = trained_model(ctx, ctx.input("model"))
    with gathered(model.parameters()):
        ctx.write(lambda: save_backbone(model, tokenizer, build.path / artifacts.PRETRAINED))
