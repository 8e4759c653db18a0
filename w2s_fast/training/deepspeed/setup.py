"""Import DeepSpeed, initialise it in this job, and build its compiled parts."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from w2s_fast.distributed.world import ensure_process_group
from w2s_fast.errors import W2SError, one_line
from w2s_fast.training.config import TrainConfig


def load_deepspeed() -> Any:
    """Import deepspeed with little logging and, on CPUs, without extensions it would compile.

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
    # Shared-memory collectives between CPU ranks would be compiled at start-up; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def init_deepspeed(timeout_s: float) -> Any:
    """Return deepspeed, initialised with the process group of this job.

    Raises:
        W2SError: see ``load_deepspeed`` and ``ensure_process_group``.
    """
    deepspeed = load_deepspeed()
    ensure_process_group(timeout_s)
    deepspeed.init_distributed(verbose=False)
    return deepspeed


def check_offload(cfg: TrainConfig) -> None:
    """Build the DeepSpeed extensions that the offload of this training needs, if any.

    Raises:
        W2SError: if one cannot be built, or ``nvme_path`` cannot be used.
    """
    if cfg.offload_optimizer == cfg.offload_params == "none":
        return
    load_deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    builders = []
    if cfg.offload_optimizer != "none":
        builders.append(("offload_optimizer", CPUAdamBuilder(), "ninja and a C++ compiler"))
    if cfg.nvme_path is not None:
        builders.append(("nvme", AsyncIOBuilder(), "ninja, a C++ compiler and libaio-dev"))
        try:
            Path(cfg.nvme_path).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise W2SError(f"nvme_path is {cfg.nvme_path!r}: {e.strerror}; name a folder") from e
    for field, builder, tools in builders:
        try:
            builder.load(verbose=False)
        except Exception as e:  # builds fail with many types of exception
            raise W2SError(
                f"{field} needs DeepSpeed's {builder.name}, which cannot be built here "
                f"({one_line(e, 160)}); "
                f"install {tools}, or leave offload out"
            ) from e
