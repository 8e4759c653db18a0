"""DeepSpeed configuration of a training: derived from ``TrainConfig`` and an optional JSON file.

``TrainConfig`` defines what is trained, so it decides batch size, optimizer, clipping and
precision. The user's JSON file adds settings that only DeepSpeed has (buckets, persistence,
communication). A setting that both define must agree, or be "auto" in the file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, nearest, one_line
from w2s_fast.files import read_text
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.deepspeed.setup import load_deepspeed

AUTO = "auto"
REDUCE_BUCKET = 50_000_000  # gradients reduced at a time; DeepSpeed's default would reserve 1 GB
PREFETCH = 50_000_000  # weights fetched ahead of their use
SUB_GROUP = 100_000_000  # parameters of one optimizer call at ZeRO-3; bounds its fp32 gradient
# Known settings; DeepSpeed itself ignores unknown names.
_KNOWN_SETTINGS = (
    "activation_checkpointing", "aio", "amp", "autotuning", "bf16", "bfloat16", "checkpoint",
    "comms_logger", "communication_data_type", "compile", "csv_monitor", "data_types",
    "disable_allgather", "dump_state", "elasticity", "flops_profiler", "fp16",
    "gradient_accumulation_steps", "gradient_clipping", "gradient_predivide_factor",
    "memory_breakdown", "nebula", "optimizer", "prescale_gradients", "scheduler",
    "sparse_gradients", "steps_per_print", "tensorboard", "timers", "torch_autocast",
    "train_batch_size", "train_micro_batch_size_per_gpu", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
)  # fmt: skip
# Settings that would change what is trained, or how gradients are summed.
_REFUSED_SETTINGS = {
    "scheduler": "the learning rate comes from schedule and warmup_frac",
    "prescale_gradients": "gradients are summed over all rows of a step, on every process",
    "gradient_predivide_factor": "gradients are summed over all rows of a step, on every process",
    "amp": "set the model's dtype",
    "torch_autocast": "set the model's dtype",
    "elasticity": "a checkpoint resumes on any number of processes as it is",
    "autotuning": "it would run trainings with other settings",
}
# Parameters of the optimizer that may be given: what a training's fields decide, and how it is
# computed. The second may only be true, and are left out, as not every AdamW has them: otherwise
# it would be another optimizer, or have less exact moments.
_OPTIMIZER_PARAMS = ("lr", "betas", "eps", "weight_decay", "torch_adam", "fused")
_ONLY_TRUE = ("adam_w_mode", "bias_correction", "fp32_optimizer_states")
_PARAMS = "optimizer.params."
# DeepSpeed setting -> the field of ``TrainConfig`` (or property of the model) that decides it
_DECIDED_BY = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size and micro_batch_size",
    "gradient_clipping": "clip_norm",
    "optimizer.type": "the optimizer, AdamW",
    "optimizer.params.lr": "lr",
    "optimizer.params.betas": "beta1 and beta2",
    "optimizer.params.eps": "eps",
    "optimizer.params.weight_decay": "weight_decay",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload_optimizer",
    "zero_optimization.offload_param.device": "offload_params",
    "bf16.enabled": "the model's dtype",
    "fp16.enabled": "the model's dtype",
}


# Settings that change how numbers are rounded or which steps are skipped, so what is trained.
_PRECISION = (
    "bf16.", "bfloat16.", "fp16.", "data_types.", "communication_data_type",
    "zero_optimization.zero_quantized_", "zero_optimization.zeropp_loco_param",
)  # fmt: skip


def deepspeed_config(cfg: TrainConfig, dtype: str, size: int, cuda: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a training.

    Args:
        cfg: the training, ``zero_stage`` 1 to 3.
        dtype: of the model: fp32, bf16 or fp16.
        size: number of processes.
        cuda: whether the model is on CUDA devices.

    Raises:
        W2SError: for a batch that does not split, fp16 on CPUs without it, or a JSON file that
            contradicts.
    """
    if dtype == "fp16" and not cuda:
        _check_fp16()
    micro, accumulation = cfg.batch_shape(size)
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * size,
        "gradient_clipping": cfg.clip_norm or 0.0,
        "steps_per_print": 2**31 - 1,
        "optimizer": _optimizer(cfg, cuda),
        "zero_optimization": _zero(cfg, cuda),
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bf16"},
        "fp16": {"enabled": dtype == "fp16"},
    }
    if dtype != "fp32":
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    if cfg.deepspeed_config is None:
        return derived
    merged = merge(derived, read_config(Path(cfg.deepspeed_config)), cfg.deepspeed_config)
    _check_whole(merged, cfg.deepspeed_config)
    return merged


def precision_settings(cfg: TrainConfig) -> dict[str, Any]:
    """Return the settings of the JSON file by which a result depends on more than ``cfg``, by name.

    Raises:
        W2SError: if the file cannot be read.
    """
    if cfg.deepspeed_config is None:
        return {}
    settings = _flat(_read(Path(cfg.deepspeed_config)), "")
    return {
        name: value
        for name, value in settings
        if name.startswith(_PRECISION) and name not in _DECIDED_BY and value != AUTO
    }


def read_config(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file and check its names.

    Raises:
        W2SError: if it cannot be read, has a name DeepSpeed does not know, or would train with
            another optimizer.
    """
    settings = _read(path)
    for name in settings:
        if name in _REFUSED_SETTINGS:
            raise W2SError(f"{path}: leave out {name!r}: {_REFUSED_SETTINGS[name]}")
        if name not in _KNOWN_SETTINGS:
            raise W2SError(f"{path}: unknown setting {name!r}{nearest(name, _KNOWN_SETTINGS)}")
    _check_optimizer(settings.get("optimizer", {}), path)
    _check_zero(settings.get("zero_optimization", {}), path)
    return settings


def merge(derived: Mapping[str, Any], user: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Override settings of ``derived`` by those of ``user``; "auto" keeps the derived one.

    Raises:
        W2SError: if they contradict.
    """
    out = copy.deepcopy(dict(derived))
    flat = dict(_flat(derived, ""))
    for name, value in _flat(user, ""):
        if name.startswith(_PARAMS) and name.removeprefix(_PARAMS) in _ONLY_TRUE:
            continue
        if value == AUTO:
            if name not in flat:
                raise W2SError(f'{path}: {name} is "auto"; leave it out to get its default')
            continue
        if name in _DECIDED_BY and name in flat and not _same(flat[name], value):
            raise W2SError(
                f"{path}: {name} is {value!r}, this training needs {flat[name]!r}; change "
                f'{_DECIDED_BY[name]}, or write "auto"'
            )
        _put(out, name, value)
    return out


def _check_fp16() -> None:
    load_deepspeed()
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().is_fp16_supported():
        raise W2SError(
            "the model's dtype is fp16, which DeepSpeed does not train on this processor; use bf16 "
            "or a GPU"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(read_text(path))
    except OSError as e:
        raise W2SError(f"cannot read the DeepSpeed configuration {path}: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise W2SError(f"the DeepSpeed configuration {path} is not JSON: {one_line(e)}") from e
    if not isinstance(settings, dict):
        raise W2SError(f"the DeepSpeed configuration {path} holds no settings; expected {{...}}")
    return settings


def _optimizer(cfg: TrainConfig, cuda: bool) -> dict[str, Any]:
    params: dict[str, Any] = {
        "lr": cfg.lr,
        "betas": [cfg.beta1, cfg.beta2],
        "eps": cfg.eps,
        "weight_decay": cfg.weight_decay,
    }
    if not cuda and cfg.offload_optimizer == "none":
        params["torch_adam"] = True  # needs no compilation
        params["fused"] = True  # needs no temporary of the size of the model
    return {"type": "AdamW", "params": params}


def _zero(cfg: TrainConfig, cuda: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": cfg.zero_stage,
        "overlap_comm": cuda,
        "contiguous_gradients": True,
        "reduce_bucket_size": REDUCE_BUCKET,
    }
    if cfg.offload_optimizer != "none":
        zero["offload_optimizer"] = _offload(cfg, cfg.offload_optimizer, cuda)
    if cfg.offload_params != "none":
        zero["offload_param"] = _offload(cfg, cfg.offload_params, cuda)
    if cfg.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = PREFETCH
        zero["sub_group_size"] = SUB_GROUP
        zero["stage3_gather_16bit_weights_on_model_save"] = False  # weights are written in shards
    return zero


def _offload(cfg: TrainConfig, device: str, cuda: bool) -> dict[str, Any]:
    section: dict[str, Any] = {"device": device, "pin_memory": cuda}
    if device == "nvme":
        section["nvme_path"] = cfg.nvme_path
    return section


def _check_optimizer(section: Any, path: Path) -> None:
    params = section.get("params", {}) if isinstance(section, dict) else None
    if not isinstance(params, dict):
        raise W2SError(f'{path}: optimizer is {section!r}; expected {{"params": {{...}}}}')
    for name in section:
        if name not in ("type", "params"):
            raise W2SError(f"{path}: leave out optimizer.{name}; expected type and params alone")
    for name, value in params.items():
        if name in _ONLY_TRUE and value is not True:
            raise W2SError(
                f"{path}: optimizer.params.{name} is {value!r}; leave it out, it is always true"
            )
        if name not in _OPTIMIZER_PARAMS + _ONLY_TRUE:
            raise W2SError(
                f"{path}: leave out optimizer.params.{name}: it would change what is trained, "
                f"expected one of {', '.join(_OPTIMIZER_PARAMS)}{nearest(name, _OPTIMIZER_PARAMS)}"
            )


def _check_zero(section: Any, path: Path) -> None:
    from pydantic import ValidationError

    load_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if not isinstance(section, dict):
        raise W2SError(f"{path}: zero_optimization is {section!r}; expected {{...}}")
    known = set(DeepSpeedZeroConfig.model_fields)
    known |= {f.alias for f in DeepSpeedZeroConfig.model_fields.values() if f.alias}
    for name in section:
        if name not in known:
            raise W2SError(
                f"{path}: unknown setting zero_optimization.{name}{nearest(name, known)}"
            )
    try:
        DeepSpeedZeroConfig(**{k: v for k, v in section.items() if v != AUTO})
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise W2SError(f"{path}: zero_optimization.{where}: {first['msg']}") from e


def _check_whole(settings: Mapping[str, Any], path: str) -> None:
    """Let DeepSpeed parse all settings, as for one process: the batch is checked by ``merge``."""
    from deepspeed import comm
    from deepspeed.runtime.config import DeepSpeedConfig

    if comm.is_initialized():
        return  # it would compare the batch with its own number of processes
    rows, steps = (
        settings[k] for k in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    try:
        DeepSpeedConfig({**copy.deepcopy(dict(settings)), "train_batch_size": rows * steps})
    except Exception as e:  # the types of its blocks are not checked before they are used
        raise W2SError(f"{path}: DeepSpeed does not take it: {one_line(e)}") from e


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _put(out: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        out = out.setdefault(part, {})
    out[last] = value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, str) and isinstance(b, str):
        return a.lower() == b.lower()
    return bool(a == b)
