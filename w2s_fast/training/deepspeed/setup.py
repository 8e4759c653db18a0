"""DeepSpeed itself: found, quiet, introduced to the processes, and its compiled parts built."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from w2s_fast.distributed import world
from w2s_fast.errors import W2SError
from w2s_fast.training.config import TrainConfig


def load_deepspeed() -> Any:
    """The deepspeed package, quiet, and on CPUs without what it would have to compile.

    Raises:
        W2SError: if it is not installed.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|deepspeed)\..*")
    try:
        import deepspeed
    except ImportError as e:
        raise W2SError(
            f"sharding needs deepspeed ({e}): pip install 'w2s-fast[deepspeed]', or use "
            "zero_stage=0"
        ) from e
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Shared-memory collectives between CPU ranks: a build at start-up that gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def ready(timeout_s: float) -> Any:
    """DeepSpeed, with the processes of this job introduced to it.

    Raises:
        W2SError: see ``load_deepspeed``, and ``world.solo``.
    """
    deepspeed = load_deepspeed()
    world.solo(timeout_s)
    deepspeed.init_distributed(verbose=False)
    return deepspeed


def check_offload(cfg: TrainConfig) -> None:
    """Build, where that is still to do, what DeepSpeed needs for the offload of this training.

    Raises:
        W2SError: if it cannot be built here, or ``nvme_path`` cannot be used.
    """
    if cfg.offload_optimizer == cfg.offload_params == "none":
        return
    load_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    wanted = []
    if cfg.offload_optimizer != "none":
        wanted.append(("offload_optimizer", CPUAdamBuilder(), "ninja and a C++ compiler"))
    if cfg.nvme_path is not None:
        wanted.append(("nvme", AsyncIOBuilder(), "ninja, a C++ compiler and libaio-dev"))
        try:
            Path(cfg.nvme_path).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise W2SError(f"nvme_path is {cfg.nvme_path!r}: {e.strerror}; name a folder") from e
    for what, builder, tools in wanted:
        try:
            builder.load(verbose=False)
        except Exception as e:  # a build fails in many ways
            said = " ".join(str(e).split())[:160]
            raise W2SError(
                f"{what} needs DeepSpeed's {builder.name}, which cannot be built here ({said}); "
                f"install {tools}, or leave offload out"
            ) from e
