"""The stages between labels and student that methods ask for: arrays in, arrays out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import train_of
from w2s_fast.errors import W2SError
from w2s_fast.methods import Targets, make_method
from w2s_fast.models.weights import whole
from w2s_fast.pipeline.artifacts import BALANCE, FEATURES, LABELS, PRETRAINED, TRAJECTORY
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.parquet import read_labels, write_probs
from w2s_fast.pipeline.stages.build_model import new_model, read_features, save_language_model
from w2s_fast.pipeline.stages.training_set import encoded
from w2s_fast.store import Building
from w2s_fast.tasks import Inputs

_PART = "part-00000.parquet"


def features(ctx: Context, build: Building) -> None:
    """Hidden states of the untrained model at the label position, bf16 (N, D)."""
    from w2s_fast.probing.feature_cache import cache_features

    model, tokenizer = new_model(ctx, ctx.job.setting("role"))
    items = ctx.inputs(ctx.job.setting("split"))
    if (word := ctx.job.setting("word")) is not None:
        items = asked(ctx, items, words(ctx)[word])
    layer = ctx.job.setting("layer")
    at = layer if layer in ("half", "last") else int(layer)
    cache_features(model, encoded(ctx, tokenizer, items), build.path / FEATURES, at)


def prior(ctx: Context, build: Building) -> None:
    """The untrained model's own answer: probabilities of the words of the classes."""
    from w2s_fast.training import next_token_probs

    model, tokenizer = new_model(ctx, ctx.job.setting("role"), "generation")
    items = ctx.inputs(ctx.job.setting("split"))
    probs = next_token_probs(model, tokenizer, asked(ctx, items, "").texts, words(ctx))
    ctx.write(lambda: _write_labels(build.path, items, Targets(probs)))


def balance(ctx: Context, build: Building) -> None:
    """True share of every class of the transfer set (C,)."""
    labels = ctx.gold("transfer").labels
    shares = np.bincount(labels, minlength=ctx.n_classes) / len(labels)
    ctx.write(lambda: np.save(build.path / BALANCE, shares, allow_pickle=False))


def trajectory(ctx: Context, build: Building) -> None:
    """What a training recorded: (K, N, C) predictions of the transfer texts."""
    recorded = ctx.input("model") / TRAJECTORY
    ctx.write(lambda: os.link(recorded, build.path / TRAJECTORY))


def apply(ctx: Context, build: Building) -> None:
    """Call a method's own function with the arrays it asked for."""
    method = make_method(ctx.job.setting("method"))
    function = getattr(method, ctx.job.setting("function"))
    given = {name: _read(ctx, name) for name, _ in ctx.job.inputs}
    out = function(**given, seed=ctx.seed)
    items = ctx.inputs("transfer")
    _check(ctx, method, out, len(items))
    ctx.write(lambda: _write_labels(build.path, items, out))


def _check(ctx: Context, method: object, out: Any, n: int) -> None:
    shape = (n, ctx.n_classes)
    if not isinstance(out, Targets) or out.probs.shape != shape:
        got = out.probs.shape if isinstance(out, Targets) else type(out).__name__
        raise W2SError(
            f"{type(method).__name__}.{ctx.job.setting('function')} gave {got}; expected Targets "
            f"with probs {shape}"
        )
    if out.weight is not None and (out.weight.shape != (n,) or not (out.weight >= 0).all()):
        raise W2SError(
            f"{type(method).__name__}.{ctx.job.setting('function')} gave weights of shape "
            f"{out.weight.shape}; expected ({n},), none negative"
        )


def _read(ctx: Context, name: str) -> Any:
    """An input as the method's function takes it, by what its folder holds."""
    folder = ctx.input(name)
    if (folder / LABELS).exists():
        ids = ctx.inputs("transfer").ids
        return Targets(*read_labels(folder / LABELS, ids, ctx.n_classes))
    if (folder / FEATURES).exists():
        return read_features(folder).float().numpy()
    path = next(p for p in (folder / TRAJECTORY, folder / BALANCE) if p.exists())
    return np.load(path, allow_pickle=False)


def _write_labels(folder: Path, items: Inputs, targets: Targets) -> None:
    (folder / LABELS).mkdir()
    write_probs(folder / LABELS / _PART, items.ids, targets.probs, targets.weight)


def words(ctx: Context) -> tuple[str, ...]:
    """What a language model says for each class: the task's words, else " " and the name."""
    task = ctx.task
    return task.words or tuple(f" {name}" for name in task.class_names)


def asked(ctx: Context, items: Inputs, word: str) -> Inputs:
    """The texts as questions to a language model, each followed by ``word``."""
    pairs = items.pairs or ("",) * len(items)
    texts = tuple(
        ctx.task.prompt.replace("{text}", text).replace("{pair}", pair) + word
        for text, pair in zip(items.texts, pairs, strict=True)
    )
    return Inputs(items.ids, texts, None, items.groups)


def tuned(ctx: Context, build: Building) -> None:
    """Train the language model on the transfer texts alone (Burns et al. 2023, §5.2.2)."""
    from w2s_fast.losses import make_loss
    from w2s_fast.training import train
    from w2s_fast.training.completions import encode_texts

    cfg = train_of(ctx.cfg, ctx.job.setting("role"))
    model, tokenizer = new_model(ctx, ctx.job.setting("role"), "generation")
    items = ctx.inputs("transfer")
    rows = encode_texts(tokenizer, [*items.texts, *(items.pairs or ())], cfg.max_length)
    train(
        model, rows, rows.labels, make_loss("xent"), cfg, ctx.seed,
        checkpoint_dir=build.checkpoint, progress=ctx.progress,
    )  # fmt: skip
    with whole(model.parameters()):
        ctx.write(lambda: save_language_model(model, tokenizer, build.path / PRETRAINED))
