"""Which engine trains a model."""

from __future__ import annotations

import torch
from torch import nn

from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.deepspeed.engine import DeepSpeedEngine
from w2s_fast.training.engine import Engine, PlainEngine
from w2s_fast.training.train_mode import check_no_layer_drop


def make_engine(model: nn.Module, cfg: TrainConfig, world: World) -> Engine:
    """Return the engine for ``model``: plain torch, or DeepSpeed where ``cfg.zero_stage`` is not 0.

    Raises:
        W2SError: if the batch does not split over the processes, fp16 weights lack loss scaling, or
            ZeRO would train a model that skips layers at random.
    """
    cfg.batch_shape(world.size)
    dtype = _lowest_dtype(model)
    if cfg.zero_stage:
        if world.size > 1:
            check_no_layer_drop(model, cfg)
        return DeepSpeedEngine(model, cfg, world, dtype)
    if dtype == "fp16":
        raise W2SError("fp16 weights need loss scaling; use zero_stage=1 or more, or dtype bf16")
    return PlainEngine(model, cfg, world)


def _lowest_dtype(model: nn.Module) -> str:
    dtypes = {p.dtype for p in model.parameters()}
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    return next((name for dtype, name in names.items() if dtype in dtypes), "fp32")
