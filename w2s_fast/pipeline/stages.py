"""The stages that train or predict: pure functions of settings, input folders and a seed.

Each fills one folder. ``weak`` learns true labels of the first half; ``labels`` applies it to the
second half; ``student`` learns those soft labels, ``ceiling`` the true ones of the same half,
``control`` the soft ones without pretraining. All are scored on the same test items.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast import world
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.models import (
    ModelConfig,
    build_model,
    load_tokenizer,
    load_weights,
    save_weights,
)
from w2s_fast.pipeline.jobs import EMBEDDED, Job
from w2s_fast.pipeline.tables import is_whole, read_probs, write_probs
from w2s_fast.store import Building, write_json
from w2s_fast.tasks import Examples, TaskConfig, TaskData, get_task
from w2s_fast.world import World

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[int, int, float], None]
MODEL, TEST, LABELS, LOG = "model.safetensors", "test.parquet", "labels", "log.json"
SCORES = "scores.json"
SHARD_ROWS = 20_000  # items of one file of weak labels; also what a kill can cost
PRETRAINED, PRETRAIN_SEED = "model", 0


@dataclass(frozen=True)
class Context:
    """What a stage works on.

    Attributes:
        cfg: The run.
        job: The job.
        folders: Folder of each finished job it needs, by name.
        progress: Called with (step, steps, loss).
    """

    cfg: RunConfig
    job: Job
    folders: Mapping[str, Path]
    progress: Progress

    @property
    def here(self) -> World:
        """This process among those that compute the stage together."""
        return world.world()

    def write(self, write: Callable[[], Any]) -> None:
        """Let rank 0 write; an error there is one everywhere."""
        error = ""
        if self.here.first:
            try:
                write()
            except OSError as e:
                if self.here.size == 1:
                    raise
                error = f"{e}"
        if error := self.here.share(error):
            raise W2SError(f"rank 0 could not write: {error}")

    @property
    def seed(self) -> int:
        """Seed of the job; jobs shared by all seeds use a fixed one."""
        return PRETRAIN_SEED if self.job.seed is None else self.job.seed

    @property
    def data(self) -> TaskData:
        """The splits of this seed."""
        return load_data(self.cfg.task, self.seed)


@functools.lru_cache(maxsize=8)
def load_data(task: TaskConfig, seed: int) -> TaskData:
    """Return the splits of one seed; kept, as several jobs of a process use them."""
    return get_task(task.name).load(task, seed)


def pretrain(ctx: Context, build: Building) -> None:
    """Make the embedded task's pretrained language model; it never sees a label."""
    from transformers.utils import logging

    from w2s_fast.tasks import agreement_lm

    logging.disable_progress_bar()  # of saving one small file; the run shows its own
    target = build.path / PRETRAINED
    ctx.write(lambda: agreement_lm.pretrain(target, ctx.cfg.task, ctx.seed, ctx.progress))


def weak(ctx: Context, build: Building) -> None:
    """Train the supervisor on true labels."""
    _fit(ctx, build, "weak", ctx.data.weak, _one_hot(ctx.data.weak, ctx.data))


def labels(ctx: Context, build: Building) -> None:
    """Label the second half: the full soft vector of every item, a shard of items at a time.

    Shards are the same whatever the number of processes, and a finished one survives a kill.
    """
    from w2s_fast.engine import encode, predict

    model, tokenizer = new_model(ctx, "weak")
    load_weights(model, ctx.folders[f"weak/{ctx.job.seed}"] / MODEL, ctx.here)
    items, cfg = ctx.data.transfer, ctx.cfg.weak_train
    data = encode(tokenizer, items, cfg.max_length)
    starts = range(0, len(items.ids), SHARD_ROWS)
    if ctx.here.first:
        build.checkpoint.mkdir(exist_ok=True)
    for i, start in enumerate(starts):
        shard = slice(start, start + SHARD_ROWS)
        path = build.checkpoint / f"part-{i:05d}.parquet"
        if not ctx.here.share(path.exists() and is_whole(path, items.ids[shard])):
            probs = predict(model, data.rows(shard))
            ctx.write(lambda: write_probs(path, items.ids[shard], probs))  # noqa: B023 - called now
        ctx.progress(i + 1, len(starts), 0.0)
    ctx.write(lambda: os.replace(build.checkpoint, build.path / LABELS))


def student(ctx: Context, build: Building) -> None:
    """Train the strong model on the weak labels."""
    _fit(ctx, build, "student", ctx.data.transfer, _weak_labels(ctx))


def ceiling(ctx: Context, build: Building) -> None:
    """Train the strong model on the true labels of the same items."""
    _fit(ctx, build, "student", ctx.data.transfer, _one_hot(ctx.data.transfer, ctx.data))


def report(ctx: Context, build: Building) -> None:
    """Score every run's predictions."""
    from w2s_fast.pipeline.scores import score

    data = {s: load_data(ctx.cfg.task, s) for s in ctx.cfg.seeds}
    ctx.write(lambda: write_json(build.path / SCORES, score(ctx.cfg, data, ctx.folders)))


STAGES: dict[str, Callable[[Context, Building], None]] = {
    "pretrain": pretrain,
    "weak": weak,
    "labels": labels,
    "student": student,
    "ceiling": ceiling,
    "control": student,  # `new_model` leaves the pretrained weights out
    "report": report,
}


def _fit(ctx: Context, build: Building, role: str, items: Examples, targets: np.ndarray) -> None:
    from w2s_fast.engine import encode, train
    from w2s_fast.losses import make_loss

    cfg = ctx.cfg.weak_train if role == "weak" else ctx.cfg.student_train
    model, tokenizer = new_model(ctx, role)
    log = train(
        model,
        encode(tokenizer, items, cfg.max_length),
        targets,
        make_loss(ctx.job.loss or "xent"),
        cfg,
        ctx.seed,
        checkpoint_dir=build.checkpoint,
        progress=ctx.progress,
    )
    save_weights(model, build.path / MODEL, ctx.here)
    test = ctx.data.test
    probs = _predict(ctx, role, model, tokenizer, test)
    ctx.write(lambda: write_probs(build.path / TEST, test.ids, probs))
    build.info["train_seconds"] = log.pop("seconds", None)
    ctx.write(lambda: (build.path / LOG).write_text(json.dumps(log) + "\n"))


def _predict(
    ctx: Context, role: str, model: nn.Module, tokenizer: Any, items: Examples
) -> np.ndarray:
    from w2s_fast.engine import encode, predict

    cfg = ctx.cfg.weak_train if role == "weak" else ctx.cfg.student_train
    return predict(model, encode(tokenizer, items, cfg.max_length))


def new_model(ctx: Context, role: str) -> tuple[nn.Module, Any]:
    """Return the role's untrained classifier on its device, and its tokenizer."""
    cfg = _located(ctx, ctx.cfg.weak if role == "weak" else ctx.cfg.student)
    if ctx.job.stage == "control":
        cfg = replace(cfg, pretrained=False)
    tokenizer = load_tokenizer(cfg, _fallback_tokenizer(ctx))
    train = ctx.cfg.weak_train if role == "weak" else ctx.cfg.student_train
    partition = None
    if train.zero == 3 and cfg.source != "bow":
        from w2s_fast.engine.zero import deepspeed_config, ready

        ready(train.timeout_s)
        cuda = device(ctx.cfg) == "cuda"
        partition = deepspeed_config(train, cfg.dtype, ctx.here.size, cuda)
    model = build_model(cfg, len(ctx.data.class_names), tokenizer, ctx.seed, partition)
    return model.to(device(ctx.cfg)), tokenizer


def _located(ctx: Context, cfg: ModelConfig) -> ModelConfig:
    if cfg.source != EMBEDDED:
        return cfg
    return replace(cfg, source=str(ctx.folders["pretrain"] / PRETRAINED))


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


def _weak_labels(ctx: Context) -> np.ndarray:
    data = ctx.data
    path = ctx.folders[f"labels/{ctx.job.seed}"] / LABELS
    return read_probs(path, data.transfer.ids, len(data.class_names))


def _one_hot(items: Examples, data: TaskData) -> np.ndarray:
    return np.eye(len(data.class_names), dtype=np.float32)[items.labels]
