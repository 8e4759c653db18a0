"""Build a model whose weights are partitioned over the processes from the start (ZeRO-3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from w2s_fast.distributed.world import get_world
from w2s_fast.models.weights import is_partitioned
from w2s_fast.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def partitioned_init(cfg: TrainConfig, dtype: str, device: str) -> Iterator[None]:
    """Let transformers partition weights as it makes or reads them; no effect below ZeRO stage 3.

    No process then holds the whole model. Use it around ``build_model``.

    Args:
        cfg: how the model will be trained.
        dtype: of the model: fp32, bf16 or fp16.
        device: type of the device that it will be trained on.

    Raises:
        W2SError: see ``init_deepspeed`` and ``deepspeed_config``.
    """
    if cfg.zero_stage != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    from w2s_fast.training.deepspeed.config import deepspeed_config
    from w2s_fast.training.deepspeed.setup import init_deepspeed

    init_deepspeed(cfg.timeout_s)
    config = deepspeed_config(cfg, dtype, get_world().size, device == "cuda")
    reference = HfDeepSpeedConfig(config)  # transformers holds it weakly
    try:
        yield
    finally:
        del reference
        unset_hf_deepspeed_config()


def gather_in_forward(model: nn.Module, cfg: TrainConfig, dtype: str) -> Any:
    """Let a partitioned model that is not trained gather its weights in every forward.

    A training does this itself. No effect on a model that is whole.

    Args:
        model: from ``build_model`` in ``partitioned_init``.
        cfg, dtype: as there.

    Returns:
        DeepSpeed's engine; None for a model that is whole.
    """
    if not any(map(is_partitioned, model.parameters())):
        return None
    from w2s_fast.training.deepspeed.config import deepspeed_config
    from w2s_fast.training.deepspeed.setup import init_deepspeed

    deepspeed = init_deepspeed(cfg.timeout_s)
    cuda = next(model.parameters()).device.type == "cuda"
    config = deepspeed_config(cfg, dtype, get_world().size, cuda)
    del config["optimizer"]
    config["zero_optimization"].pop("offload_optimizer", None)
    return deepspeed.initialize(model=model, config=config)[0]


@contextlib.contextmanager
def gathered_in_forward(model: nn.Module) -> Iterator[None]:
    """Let a partitioned model gather its weights in every forward inside the block.

    A training that follows prepares the model itself. No effect on a model that is whole, or that
    gathers its weights already.
    """
    hooks = (h for m in model.modules() for h in m._forward_pre_hooks.values())
    if any("DeepSpeedZeRoOffload" in h.__qualname__ for h in hooks):
        yield
        return
    names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    dtype = names.get(next(model.parameters()).dtype, "fp32")
    cfg = TrainConfig(batch_size=get_world().size, zero_stage=3)
    engine = gather_in_forward(model, cfg, dtype)
    try:
        yield
    finally:
        if engine is not None:
            engine.optimizer.destroy()
