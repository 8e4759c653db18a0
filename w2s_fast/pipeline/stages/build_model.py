"""Build the model of a job's role: untrained, or with the weights of a finished training."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.config import RunConfig, model_of, train_of
from w2s_fast.models import BUILT_IN, ModelConfig, build_model, load_tokenizer, load_weights
from w2s_fast.models.checkpoint_source import is_checkpoint
from w2s_fast.models.low_rank import factorise, merge_low_rank
from w2s_fast.models.rounding import perturb_last_bits
from w2s_fast.models.text_tokenizer import read_tokenizer
from w2s_fast.models.weights import load_module, module_tensors
from w2s_fast.pipeline.artifacts import FEATURES, MODEL, PRETRAINED, TOKENIZER
from w2s_fast.pipeline.context import Context
from w2s_fast.tasks import EMBEDDED, task_tokenizer
from w2s_fast.training.deepspeed.partition import gather_in_forward, partitioned_init

if TYPE_CHECKING:
    from torch import Tensor, nn


def new_model(ctx: Context, role: str, kind: str | None = None) -> tuple[nn.Module, Any]:
    """Return a role's model before the job's training, on its device, and its tokenizer.

    Input ``initial`` is a finished training whose weights replace the untrained ones.

    Args:
        ctx: Context of the stage.
        role: Role of the model.
        kind: Kind of task that the model is built for; None: the run's.
    """
    cfg = _with_start(ctx, model_of(ctx.cfg, role))
    if ctx.job.stage == "control" or ctx.job.setting("control"):
        cfg = replace(cfg, pretrained=False)
    if ctx.job.setting("freeze"):
        # A start has its LoRA merged in.
        rank = 0 if "start" in dict(ctx.job.inputs) else cfg.lora_rank
        cfg = replace(cfg, freeze="base", lora_rank=rank)
    tokenizer = load_tokenizer(cfg, _fallback_tokenizer(ctx))
    # A built-in model is small and drawn whole, so that its weights do not depend on the sharding.
    small = cfg.source in BUILT_IN
    train = train_of(ctx.cfg, role)
    with nullcontext() if small else partitioned_init(train, cfg.dtype, device(ctx.cfg)):
        kind = kind or ("generation" if cfg.preference else ctx.task.kind)
        model = build_model(
            cfg,
            ctx.n_classes,
            tokenizer,
            ctx.seed,
            kind,
            projection=ctx.job.setting("projection", 0),
            prefixes=tuple(ctx.job.setting("prefixes", ())),
            prefix=ctx.job.setting("prefix", 1.0),
        )
    if share := ctx.job.setting("low_rank"):
        low_rank: Any = model
        factorise(low_rank.base, share, ctx.world)
    if "initial" in dict(ctx.job.inputs):
        load_weights(model, ctx.input("initial") / MODEL, ctx.world)
    if replicate := ctx.job.setting("rounding"):
        perturb_last_bits(model, replicate)
    return model.to(device(ctx.cfg)), tokenizer


def language_model(ctx: Context) -> tuple[nn.Module, Any]:
    """Return the untrained language model of the job's role, to train it, and its tokenizer."""
    return new_model(ctx, ctx.job.setting("role"), "generation")


def pretrained_model(ctx: Context, kind: str | None = None) -> tuple[nn.Module, Any]:
    """Return ``new_model`` of the job's role for predictions without a training."""
    role = ctx.job.setting("role")
    model, tokenizer = new_model(ctx, role, kind)
    gather_in_forward(model, train_of(ctx.cfg, role), model_of(ctx.cfg, role).dtype)
    return model, tokenizer


def trained_model(ctx: Context, folder: Path) -> tuple[nn.Module, Any]:
    """Return the model of the job's role with the weights of a finished training."""
    frozen = ctx.job.setting("freeze")
    model, tokenizer = head_model(ctx) if frozen else pretrained_model(ctx)
    load_weights(model, folder / MODEL, ctx.world)
    return model, tokenizer


def job_model(ctx: Context) -> tuple[nn.Module, Any]:
    """Return the model of input `model` for predictions, or the untrained one without the input."""
    if "model" in dict(ctx.job.inputs):
        return trained_model(ctx, ctx.input("model"))
    return pretrained_model(ctx)


def whole_model(ctx: Context, folder: Path) -> tuple[Any, Any]:
    """Return ``trained_model`` with its backbone, even if only the head was trained."""
    model: Any
    model, tokenizer = new_model(ctx, ctx.job.setting("role"))
    if ctx.job.setting("freeze"):
        head: Any = head_model(ctx)[0]
        load_weights(head, folder / MODEL, ctx.world)
        load_module(model.head, module_tensors(head.head), ctx.world)
    else:
        load_weights(model, folder / MODEL, ctx.world)
    role = ctx.job.setting("role")
    gather_in_forward(model, train_of(ctx.cfg, role), model_of(ctx.cfg, role).dtype)
    return model, tokenizer


def head_model(ctx: Context) -> tuple[nn.Module, None]:
    """Return the untrained head of a frozen model; it reads cached states, so no tokenizer."""
    from w2s_fast.probing.feature_cache import CachedHead

    cfg = model_of(ctx.cfg, ctx.job.setting("role"))
    states = next(ctx.input(name) for name, _ in ctx.job.inputs if name in ("transfer", "test"))
    head: Any = None
    if cfg.head_init != "zero":
        initial: Any = new_model(ctx, ctx.job.setting("role"))[0]
        head = initial.head
    n_candidates = ctx.kind.n_candidates
    model = CachedHead(read_features(states).shape[1], ctx.n_classes, head, n_candidates)
    if "initial" in dict(ctx.job.inputs):
        load_weights(model, ctx.input("initial") / MODEL, ctx.world)
    return model.to(device(ctx.cfg)), None


def read_features(folder: Path) -> Tensor:
    """Return the hidden states (N, D) bf16 that stage `features` stored, memory-mapped."""
    from safetensors import safe_open

    with safe_open(folder / FEATURES, framework="pt") as f:
        return f.get_tensor("states")


def save_language_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a causal language model, LoRA merged in, as a folder that ``model.source`` can name."""
    lm = model.lm
    backbone = getattr(lm, lm.base_model_prefix)
    if hasattr(backbone, "merge_and_unload"):
        setattr(lm, lm.base_model_prefix, backbone.merge_and_unload())
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_backbone(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save the backbone of a classifier, LoRA merged in, as a folder."""
    base = model.base
    if hasattr(base, "merge_and_unload"):
        base = base.merge_and_unload()
    merge_low_rank(base)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _with_start(ctx: Context, cfg: ModelConfig) -> ModelConfig:
    """Return the model's configuration with the folder of its initial weights."""
    inputs = dict(ctx.job.inputs)
    if "start" in inputs:
        return replace(cfg, source=str(ctx.input("start") / PRETRAINED))
    if cfg.source in EMBEDDED:
        return replace(cfg, source=str(ctx.input("pretrain") / PRETRAINED))
    return cfg


def _fallback_tokenizer(ctx: Context) -> Any:
    """Return the tokenizer for models that bring none.

    It is the task's own, that of the stage `tokenizer`, or the other model's.
    """
    if (own := task_tokenizer(ctx.cfg.task.name)) is not None:
        return own
    if "tokenizer" in dict(ctx.job.inputs):
        return read_tokenizer(ctx.input("tokenizer") / TOKENIZER)
    for cfg in (ctx.cfg.student, ctx.cfg.weak):
        if is_checkpoint(Path(cfg.source)):
            return load_tokenizer(cfg, None)
    return None


def device(cfg: RunConfig) -> str:
    """Return the device that models run on; "auto" is CUDA if there is one."""
    import torch

    if cfg.device != "auto":
        return cfg.device
    return "cuda" if torch.cuda.is_available() else "cpu"
