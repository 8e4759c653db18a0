"""The stages that train a model: weak, intermediate, student, ceiling, control.

They differ in the labels they learn and in the weights they start from.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.config import to_dict, train_of
from w2s_fast.models import save_weights
from w2s_fast.pipeline.artifacts import (
    FIT,
    LOG,
    MODEL,
    PAIR_LOGPROB,
    PERPLEXITY,
    TRAJECTORY,
    write_fit,
)
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import head_model, new_model
from w2s_fast.pipeline.stages.conflict import add_conflict_rows, conflicting_loss
from w2s_fast.pipeline.stages.predict import predict_test
from w2s_fast.pipeline.stages.training_set import load_training_set, model_rows
from w2s_fast.pipeline.stages.watched_rows import WatchedRows, watched_rows
from w2s_fast.store import StageBuild
from w2s_fast.tracking import TrackingConfig
from w2s_fast.training import TrainConfig

if TYPE_CHECKING:
    from w2s_fast.training.step_targets import StepTargets


def with_logprob(ctx: Context, rows: Any) -> Any:
    """Add the log-probabilities of other models to pairs, where the job's loss needs them."""
    logprob = {
        name: np.load(ctx.input(name) / PAIR_LOGPROB, allow_pickle=False)
        for name in ("reference", "weak_policy", "weak_reference")
        if name in dict(ctx.job.inputs)
    }
    if "reference" in logprob:
        rows = rows.with_reference(logprob["reference"])
    if "weak_policy" in logprob:
        rows = rows.with_target(logprob["weak_policy"] - logprob["weak_reference"])
    return rows


def _stages(ctx: Context) -> np.ndarray | None:
    """Return the stage of every row of a training from easy to hard, None for other trainings."""
    from w2s_fast.training import difficulty_stages

    if not (n_stages := ctx.job.setting("stages")):
        return None
    difficulty = np.load(ctx.input("perplexity") / PERPLEXITY, allow_pickle=False)
    return difficulty_stages(difficulty, n_stages)


def _step_targets(ctx: Context) -> StepTargets | None:
    """Return the targets that the job's training makes in every step, None for weak labels."""
    if not (spec := ctx.job.setting("step_targets")):
        return None
    from w2s_fast.training.step_targets import make_step_targets

    return make_step_targets(spec)


def _step_logger(ctx: Context, cfg: TrainConfig) -> Any:
    """Return the context manager that logs the steps of the job to the trackers of the run."""
    tracking = ctx.cfg.tracking if ctx.world.is_main_process else TrackingConfig()
    if not tracking.trackers:
        return contextlib.nullcontext()
    from w2s_fast.tracking.step_logger import step_logger

    job = ctx.job
    settings = {"stage": job.stage, "seed": ctx.seed, "loss": job.setting("loss", "xent")}
    settings |= {f"train.{k}": str(v) for k, v in to_dict(cfg).items()}
    return step_logger(tracking, ctx.cfg.tracking_dir, job.name, settings)


def _truncate_head(
    ctx: Context, model: Any, tokenizer: Any, watched: WatchedRows, log: dict[str, Any]
) -> None:
    """Let the head keep the width that suits held-out weak labels best, after nested dropout."""
    from w2s_fast.training import truncate_head

    rows = watched.held_out
    if rows is None or not ctx.job.setting("select_width"):
        return
    data = model_rows(ctx, tokenizer, rows.items, "transfer")
    log["head_width"] = truncate_head(model, data, rows.weak_labels, rows.weight)


def train_model(ctx: Context, build: StageBuild) -> None:
    """Train the model of the job's role and predict the test items."""
    from w2s_fast.losses.nested import Nested
    from w2s_fast.training import train

    cfg = train_of(ctx.cfg, ctx.job.setting("role"))
    cfg = replace(
        cfg,
        lr=cfg.lr * ctx.job.setting("lr_factor", 1.0),
        anchor=ctx.job.setting("anchor", cfg.anchor),
        nested_dropout=ctx.job.setting("nested_dropout", cfg.nested_dropout),
        mixup=ctx.job.setting("mixup", cfg.mixup),
    )
    if ctx.job.setting("freeze"):
        model, tokenizer = head_model(ctx)
        cfg = cfg.unsharded()
    else:
        model, tokenizer = new_model(ctx, ctx.job.setting("role"))
    targets = _step_targets(ctx)
    if targets is not None and targets.branches == 2:
        from w2s_fast.training.co_teaching import Twins

        frozen = ctx.job.setting("freeze")
        peer, _ = head_model(ctx) if frozen else new_model(ctx, ctx.job.setting("role"))
        trained: Any = Twins(model, peer)
    else:
        trained = model
    watched = watched_rows(ctx, load_training_set(ctx), tokenizer)
    training_set = add_conflict_rows(ctx, watched.training_set)
    rows, weak_labels = training_set.encode(ctx, tokenizer)
    rows = with_logprob(ctx, rows)
    loss = ctx.kind.make_loss(ctx.job.setting("loss", "xent"))
    loss, gold = conflicting_loss(ctx, loss, training_set)
    if weights := ctx.job.setting("prefix_weights"):
        loss = Nested(loss=loss, weights=tuple(weights))
    with _step_logger(ctx, cfg) as on_step:
        log = train(
            trained,
            rows,
            weak_labels,
            loss,
            cfg,
            ctx.seed,
            weight=training_set.weight,
            stages=_stages(ctx),
            gold=gold,
            step_targets=targets,
            checkpoint_dir=build.checkpoint,
            progress=ctx.progress,
            on_step=on_step,
            watch=watched.watch,
        )
    if watched.training_set.q is not None:
        log["truncated_prompts"] = rows.n_truncated
    _truncate_head(ctx, model, tokenizer, watched, log)
    if ctx.job.setting("prefixes"):
        head: Any = model.head
        head.cut()
    save_weights(model, build.path / MODEL, ctx.world)
    predict_test(ctx, build, model, tokenizer)
    trajectory = log.pop("trajectory", None)
    if ctx.job.setting("record"):
        ctx.write(lambda: np.save(build.path / TRAJECTORY, trajectory, allow_pickle=False))
    if watched.fitted is not None:
        ids = watched.fitted.ids
        fit = trajectory[:, -len(ids) :]
        ctx.write(lambda: write_fit(build.path / FIT, ids, log["watched"], fit))
    build.info["train_seconds"] = log.pop("seconds", None)
    text = json.dumps(log) + "\n"
    ctx.write(lambda: (build.path / LOG).write_text(text, encoding="utf-8"))
