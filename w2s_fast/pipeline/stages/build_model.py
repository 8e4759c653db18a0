"""The model of each role of a run: untrained, or with the weights of a finished training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.config import RunConfig, model_of, train_of
from w2s_fast.models import ModelConfig, build_model, load_tokenizer, load_weights
from w2s_fast.pipeline.artifacts import FEATURES, MODEL, PRETRAINED
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.jobs import EMBEDDED

if TYPE_CHECKING:
    from torch import Tensor, nn


def trained_model(ctx: Context, folder: Path) -> tuple[nn.Module, Any]:
    """The model of the job's role with the weights of a finished training."""
    frozen = ctx.job.setting("freeze")
    model, tokenizer = head_model(ctx) if frozen else new_model(ctx, ctx.job.setting("role"))
    load_weights(model, folder / MODEL, ctx.here)
    return model, tokenizer


def whole_model(ctx: Context, folder: Path) -> tuple[Any, Any]:
    """The same with its body, also where only the head was trained, on one process."""
    model: Any
    model, tokenizer = new_model(ctx, ctx.job.setting("role"))
    if ctx.job.setting("freeze"):
        head: Any = head_model(ctx)[0]
        load_weights(head, folder / MODEL)
        model.head.load_state_dict(head.head.state_dict())
    else:
        load_weights(model, folder / MODEL)
    return model, tokenizer


def head_model(ctx: Context) -> tuple[nn.Module, Any]:
    """The untrained head of a frozen model, which reads the states of its body from the cache."""
    from w2s_fast.probing.feature_cache import CachedHead

    cfg = model_of(ctx.cfg, ctx.job.setting("role"))
    states = next(ctx.input(name) for name, _ in ctx.job.inputs if name in ("transfer", "test"))
    start: Any = None
    if cfg.head_init != "zero":
        start = new_model(ctx, ctx.job.setting("role"))[0]
    hidden = read_features(states).shape[1]
    n_candidates = 2 if ctx.task.kind == "preference" else 1
    model = CachedHead(hidden, ctx.n_classes, None if start is None else start.head, n_candidates)
    return model.to(device(ctx.cfg)), None


def read_features(folder: Path) -> Tensor:
    """(N, D) bf16 hidden states that stage `features` stored, memory-mapped."""
    from safetensors import safe_open

    with safe_open(folder / FEATURES, framework="pt") as f:
        return f.get_tensor("states")


def save_language_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A model that answers in words as a folder that ``model.source`` can name, LoRA merged in."""
    lm = model.lm
    body = getattr(lm, lm.base_model_prefix)
    if hasattr(body, "merge_and_unload"):
        setattr(lm, lm.base_model_prefix, body.merge_and_unload())
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def new_model(ctx: Context, role: str, kind: str | None = None) -> tuple[nn.Module, Any]:
    """Return the role's untrained model on its device, and its tokenizer.

    Args:
        ctx: Of the stage.
        role: Whose model.
        kind: Of task, for another than the run's; "generation" is a language model.
    """
    cfg = start_of(ctx, model_of(ctx.cfg, role))
    if ctx.job.stage == "control":
        cfg = replace(cfg, pretrained=False)
    if ctx.job.setting("freeze"):
        cfg = replace(cfg, freeze="base")
    tokenizer = load_tokenizer(cfg, _fallback_tokenizer(ctx))
    train = train_of(ctx.cfg, role)
    partition = None
    if train.zero_stage == 3 and cfg.source != "bow":
        from w2s_fast.training.deepspeed.config import deepspeed_config
        from w2s_fast.training.deepspeed.setup import ready

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
        from w2s_fast.tasks.datasets import agreement

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
