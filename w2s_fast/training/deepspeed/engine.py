"""DeepSpeed ZeRO 1 to 3: optimizer state, gradients and weights sharded over the processes.

The checkpoints are those of the plain engine, whole tensors by name, so a training resumes on any
number of processes, at any stage, and without DeepSpeed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World, limit_collective_timeouts
from w2s_fast.errors import W2SError
from w2s_fast.models.weights import gathered, is_partitioned, module_tensors, shape_of
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.deepspeed.config import deepspeed_config
from w2s_fast.training.deepspeed.setup import init_deepspeed
from w2s_fast.training.engine import AnyBatch, LogitsFn, ReadTensor, forward, read_required
from w2s_fast.training.optim import ADAMW_STATE, decay_groups

# State of DeepSpeed's dynamic loss scaler: the scale, and counts of steps.
_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine:
    """See ``Engine``. ``dtype`` is the model's: fp32, bf16 or fp16."""

    def __init__(self, model: nn.Module, cfg: TrainConfig, world: World, dtype: str) -> None:
        deepspeed = init_deepspeed(cfg.timeout_s)
        cuda = next(model.parameters()).device.type == "cuda"
        config = deepspeed_config(cfg, dtype, world.size, cuda)
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise W2SError("the model has no trainable parameters; expected at least one")
        self._model, self._world, self._has_masters = model, world, dtype != "fp32"
        self._steps = 0
        _cast_parameters(model, dtype)
        self._engine, *_ = deepspeed.initialize(
            model=model, model_parameters=decay_groups(trained, cfg), config=config
        )
        limit_collective_timeouts(cfg.timeout_s)  # also in the groups that DeepSpeed made

    @property
    def skips_overflow(self) -> bool:
        """See ``Engine``."""
        return self._scaler is not None

    @property
    def _zero(self) -> Any:
        return self._engine.optimizer

    def logits(self, batch: AnyBatch) -> Any:
        """See ``Engine``."""
        return forward(self._engine, batch)

    def loss(self, batch: AnyBatch, logits_fn: LogitsFn) -> Tensor:
        """See ``Engine``."""
        return forward(self._engine, batch, logits_fn)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See ``Engine``."""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over the processes; the loss is a share of a sum.
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def update(self, lr: float) -> Tensor:
        """See ``Engine``."""
        for group in self._zero.param_groups:
            group["lr"] = lr
        self._engine.step()
        self._steps += not self._zero.overflow  # DeepSpeed skips the update if a gradient overflows
        norm = self._engine.get_global_grad_norm()
        # DeepSpeed's norm of a gradient that is not finite may be -1 or NaN.
        if self._zero.overflow or (norm is not None and not 0 <= norm < math.inf):
            return torch.tensor(math.inf)
        return torch.as_tensor(math.nan if norm is None else norm)

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Engine``."""
        for name, t in module_tensors(self._model).items():
            if not (isinstance(t, nn.Parameter) and t.requires_grad):
                continue
            if self._has_masters:
                yield name, self._master(t)
            else:
                with gathered([t]):
                    yield name, t

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Engine``."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if self._scaler is not None:
            values = [float(getattr(self._scaler, name)) for name in _LOSS_SCALE]
            yield "optimizer.loss_scale", torch.tensor(values, dtype=torch.float64)
        if self._steps:  # before the first update there is no optimizer state
            self._link_states()
        step = torch.tensor(float(self._steps))
        for name, t in module_tensors(self._model).items():
            with gathered([t]):
                yield f"model.{name}", t
            if not (isinstance(t, nn.Parameter) and t.requires_grad):
                continue
            if self._has_masters:
                yield f"optimizer.master.{name}", self._master(t)
            if not self._steps:
                continue
            yield f"optimizer.step.{name}", step
            for key in ADAMW_STATE[1:]:
                yield f"optimizer.{key}.{name}", safe_get_full_optimizer_state(t, key)

    def load(self, read: ReadTensor) -> None:
        """See ``Engine``."""
        steps = [0]
        self._make_states()
        self._load_scale(read("optimizer.loss_scale"))
        for name, t in module_tensors(self._model).items():
            value = self._load_weight(read, name, t)
            if not (isinstance(t, nn.Parameter) and t.requires_grad):
                continue
            master = read(f"optimizer.master.{name}") if self._has_masters else value
            self._put(t, (value if master is None else master).float(), None)
            for key in ADAMW_STATE:
                if (saved := read(f"optimizer.{key}.{name}")) is None:
                    continue
                if key == "step":
                    steps.append(int(saved))
                else:
                    self._put(t, saved, key)
        self._steps = max(steps)
        self._set_steps()

    @staticmethod
    def _master(p: Tensor) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(p)

    @property
    def _scaler(self) -> Any:
        """The dynamic loss scaler, None if there is none."""
        scaler = getattr(self._zero, "loss_scaler", None)  # the optimizer of bf16 has none
        return scaler if getattr(scaler, "dynamic", False) else None

    def _load_scale(self, saved: Tensor | None) -> None:
        if saved is None or self._scaler is None:
            return
        self._scaler.cur_scale, *counts = saved.tolist()
        for name, count in zip(_LOSS_SCALE[1:], counts, strict=True):
            setattr(self._scaler, name, int(count))

    def _load_weight(self, read: ReadTensor, name: str, t: Tensor) -> Tensor:
        """Read a saved weight into the model and return it."""
        value = read_required(read, f"model.{name}")
        if value.shape != shape_of(t):
            raise W2SError(
                f"the checkpoint's {name!r} is {tuple(value.shape)}, the model's "
                f"{tuple(shape_of(t))}; it is of another model"
            )
        with gathered([t], change=True), torch.no_grad():
            t.copy_(value)
        return value

    def _put(self, p: Any, value: Tensor, key: str | None) -> None:
        """Set this process's part of a parameter's master (``key`` None) or optimizer state."""
        from deepspeed import utils

        if not is_partitioned(p):
            if key is None:
                utils.safe_set_full_fp32_param(p, value)
            else:
                utils.safe_set_full_optimizer_state(p, value, key)
            return
        size = p.ds_tensor.numel()
        padded = value.new_zeros(size * self._world.size)
        padded[: value.numel()] = value.flatten()
        part = padded.narrow(0, size * self._world.rank, size)
        if key is None:
            utils.safe_set_local_fp32_param(p, part)
        else:
            utils.safe_set_local_optimizer_state(p, part, key)

    def _masters(self) -> list[Tensor]:
        """Return the flat fp32 parts that the optimizer updates."""
        parts = getattr(self._zero, "fp32_partitioned_groups_flat", None)  # stage 3
        if parts is not None:
            return list(parts)
        return [p for group in self._zero.optimizer.param_groups for p in group["params"]]

    def _make_states(self) -> None:
        """Create the optimizer state, which DeepSpeed would create in the first step."""
        state = self._zero.optimizer.state
        for flat in self._masters():
            state[flat] = {key: torch.zeros_like(flat) for key in ADAMW_STATE[1:]} | {"step": 0}
        self._link_states()

    def _link_states(self) -> None:
        """Link each parameter to its part of the flat optimizer state.

        DeepSpeed does so once, after the step of the first parameter group, when the later groups
        (biases and norms) have no state yet.
        """
        if hasattr(self._zero, "_lazy_init_hp_params_optimizer_state"):
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _set_steps(self) -> None:
        torch_adam = isinstance(self._zero.optimizer, torch.optim.AdamW)
        for flat in self._masters():
            steps = torch.tensor(float(self._steps)) if torch_adam else self._steps
            self._zero.optimizer.state[flat]["step"] = steps


def _cast_parameters(model: nn.Module, dtype: str) -> None:
    """Cast fp32 parameters, such as a new head's, to the dtype of a 16-bit model.

    DeepSpeed casts a model itself unless ZeRO-3 built it in parts; then it expects one dtype. The
    optimizer keeps fp32 masters, and heads compute in fp32 whatever their weights are.
    """
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype)
    for p in model.parameters() if low is not None else ():
        if p.dtype == torch.float32:
            p.data = p.data.to(low)
