"""The stages that train a model: weak, intermediate, student, ceiling, control.

They differ in whose labels they learn and from which weights they begin; the loop is one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.config import RunConfig, model_of, train_of
from w2s_fast.models import ModelConfig, build_model, load_tokenizer, load_weights, save_weights
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.jobs import EMBEDDED
from w2s_fast.pipeline.tables import read_labels, write_probs
from w2s_fast.store import Building
from w2s_fast.tasks import Inputs

if TYPE_CHECKING:
    from torch import nn

    from w2s_fast.engine import Encoded
    from w2s_fast.engine.watch import Watch

MODEL, TEST, LABELS, LOG = "model.safetensors", "test.parquet", "labels", "log.json"
TRAJECTORY, PRETRAINED = "trajectory.npy", "model"
_HOLDOUT = 0.1  # share of the rows that decide when to stop


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a model is to learn: texts, (N, C) targets, (N,) weights or None."""

    items: Inputs
    targets: np.ndarray
    weight: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Lesson:
        """The given rows, in order."""
        weight = None if self.weight is None else self.weight[rows]
        return Lesson(self.items.take(rows.tolist()), self.targets[rows], weight)


def fit(ctx: Context, build: Building) -> None:
    """Train the model of the job's role and let it answer the test items."""
    from w2s_fast.engine import predict, train
    from w2s_fast.losses import make_loss

    role = ctx.job.setting("role")
    cfg = train_of(ctx.cfg, role)
    lesson = lesson_of(ctx)
    model, tokenizer = new_model(ctx, role)
    learned, watch = _watched(ctx, lesson, tokenizer)
    log = train(
        model,
        encoded(ctx, tokenizer, learned.items),
        learned.targets,
        make_loss(ctx.job.setting("loss", "xent")),
        cfg,
        ctx.seed,
        weight=learned.weight,
        checkpoint_dir=build.checkpoint,
        progress=ctx.progress,
        watch=watch,
    )
    save_weights(model, build.path / MODEL, ctx.here)
    test = ctx.inputs("test")
    probs = predict(model, encoded(ctx, tokenizer, test))
    ctx.write(lambda: write_probs(build.path / TEST, test.ids, probs))
    seen = log.pop("trajectory", None)
    if ctx.job.setting("record"):
        ctx.write(lambda: np.save(build.path / TRAJECTORY, seen, allow_pickle=False))
    build.info["train_seconds"] = log.pop("seconds", None)
    ctx.write(lambda: (build.path / LOG).write_text(json.dumps(log) + "\n"))


def lesson_of(ctx: Context) -> Lesson:
    """Whose labels the job learns: true ones for weak model and ceiling, else what came in."""
    if ctx.job.stage in ("weak", "ceiling"):
        items = ctx.gold("weak" if ctx.job.stage == "weak" else "transfer")
        return Lesson(items.inputs, np.eye(ctx.n_classes, dtype=np.float32)[items.labels])
    transfer = ctx.inputs("transfer")
    probs, weight = read_labels(ctx.input("labels") / LABELS, transfer.ids, ctx.n_classes)
    lesson = Lesson(transfer, probs, weight)
    if weight is None:
        return lesson
    kept = lesson.take(np.flatnonzero(weight))  # a row that does not count costs no step
    return replace(kept, weight=None) if (weight[weight > 0] == 1).all() else kept


def _watched(ctx: Context, lesson: Lesson, tokenizer: Any) -> tuple[Lesson, Watch | None]:
    """The rows to learn, and what is looked at while they are learned."""
    from w2s_fast.engine.watch import Watch

    keep = ctx.job.setting("keep", "last")
    if keep == "last":
        if not ctx.job.setting("record"):
            return lesson, None
        return lesson, Watch(encoded(ctx, tokenizer, ctx.inputs("transfer")))
    held = held_out(lesson.items.groups, ctx.job.setting("holdout", _HOLDOUT), ctx.seed)
    part = lesson.take(np.flatnonzero(held))
    wanted = part.targets.argmax(1)
    if keep == "gold":
        gold = dict(zip(ctx.gold("transfer").ids, ctx.gold("transfer").labels, strict=True))
        wanted = np.array([gold[i] for i in part.items.ids])
    watch = Watch(
        encoded(ctx, tokenizer, part.items),
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


def encoded(ctx: Context, tokenizer: Any, items: Inputs) -> Encoded:
    """The texts as the model of the job's role reads them."""
    from w2s_fast.engine import encode

    length = train_of(ctx.cfg, ctx.job.setting("role")).max_length
    return encode(tokenizer, items, length, ctx.task.kind)


def trained_model(ctx: Context, folder: Path) -> tuple[nn.Module, Any]:
    """The model of the job's role with the weights of a finished training."""
    model, tokenizer = new_model(ctx, ctx.job.setting("role"))
    load_weights(model, folder / MODEL, ctx.here)
    return model, tokenizer


def new_model(ctx: Context, role: str, kind: str | None = None) -> tuple[nn.Module, Any]:
    """Return the role's untrained model on its device, and its tokenizer.

    Args:
        ctx: Of the stage.
        role: Whose model.
        kind: Of task, for another than the run's; "answers" is a language model.
    """
    cfg = start_of(ctx, model_of(ctx.cfg, role))
    if ctx.job.stage == "control":
        cfg = replace(cfg, pretrained=False)
    if ctx.job.setting("freeze"):
        cfg = replace(cfg, freeze="base")
    tokenizer = load_tokenizer(cfg, _fallback_tokenizer(ctx))
    train = train_of(ctx.cfg, role)
    partition = None
    if train.zero == 3 and cfg.source != "bow":
        from w2s_fast.engine.zero import deepspeed_config
        from w2s_fast.engine.zero_library import ready

        ready(train.timeout_s)
        cuda = device(ctx.cfg) == "cuda"
        partition = deepspeed_config(train, cfg.dtype, ctx.here.size, cuda)
    kind = kind or ctx.task.kind
    model = build_model(cfg, ctx.n_classes, tokenizer, ctx.seed, partition, kind)
    return model.to(device(ctx.cfg)), tokenizer


def start_of(ctx: Context, cfg: ModelConfig) -> ModelConfig:
    """The configuration with the folder of the weights to begin from."""
    inputs = dict(ctx.job.inputs)
    if "start" in inputs:
        return replace(cfg, source=str(ctx.input("start") / PRETRAINED))
    if cfg.source == EMBEDDED:
        return replace(cfg, source=str(ctx.input("pretrain") / PRETRAINED))
    return cfg


def _fallback_tokenizer(ctx: Context) -> Any:
    """Return the tokenizer of models that bring none: the task's own, else the other model's."""
    if ctx.cfg.task.name == "agreement":
        from w2s_fast.tasks import agreement

        return agreement.tokenizer()
    for cfg in (ctx.cfg.student, ctx.cfg.weak):
        if Path(cfg.source).is_dir():
            return load_tokenizer(cfg, None)
    return None


def device(cfg: RunConfig) -> str:
    """Return where models run: the device asked for, by default CUDA if there is one."""
    import torch

    if cfg.device != "auto":
        return cfg.device
    return "cuda" if torch.cuda.is_available() else "cpu"
