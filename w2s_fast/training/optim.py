"""AdamW with fp32 master weights for parameters of lower precision.

At lr 1e-5 most AdamW updates are smaller than half the spacing of bf16 numbers at the weight and
would be lost to rounding. Masters, moments and accumulated gradients are fp32; a bf16 parameter is
the rounded copy of its master.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError
from w2s_fast.training.config import TrainConfig

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")  # state tensors of each parameter


class MasterAdamW:
    """``torch.optim.AdamW`` over the masters of a module's trainable parameters.

    Attributes:
        masters: Masters by name of the parameter; an fp32 parameter is its own.
    """

    def __init__(self, model: nn.Module, cfg: TrainConfig, world: World = SINGLE_PROCESS) -> None:
        self._params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._params:
            raise W2SError("the model has no trainable parameters; expected at least one")
        self.masters = {n: _master(p) for n, p in self._params.items()}
        self._adamw = torch.optim.AdamW(
            decay_groups(self.masters.values(), cfg),
            lr=cfg.lr,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.eps,
            foreach=True,
        )
        self._clip_norm, self._world = cfg.clip_norm, world

    def accumulate(self) -> None:
        """Add low-precision gradients to the masters' fp32 gradients and free them.

        Sums over micro-batches thus have the accuracy of fp32.
        """
        for name, p in self._params.items():
            master = self.masters[name]
            if master is p or p.grad is None:
                continue
            if master.grad is None:
                master.grad = p.grad.to(master.dtype)
            else:
                master.grad.add_(p.grad)
            p.grad = None

    def step(self, lr: float) -> Tensor:
        """Take one step: sum gradients over processes, clip, update, round, clear gradients.

        Returns:
            0-d L2 norm of the gradient before clipping, inf if it is not finite.
        """
        self._share_gradients()
        grads = [m.grad for m in self.masters.values() if m.grad is not None]
        self._world.all_reduce(grads)
        norm = nn.utils.get_total_norm(grads)
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.masters.values(), self._clip_norm, norm)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self._params.items():
                if self.masters[name] is not p:
                    p.copy_(self.masters[name])
        return norm.nan_to_num(nan=math.inf, posinf=math.inf)

    def _share_gradients(self) -> None:
        """Give a master a gradient of zeros if only other processes have one, so all sum the same.

        Ranks differ where a model skips layers at random (LayerDrop).
        """
        masters = list(self.masters.values())
        if self._world.size == 1:
            return
        has = torch.tensor([m.grad is not None for m in masters], dtype=torch.int32)
        for master, n in zip(masters, self._world.sum(has).tolist(), strict=True):
            if n and master.grad is None:
                master.grad = torch.zeros_like(master)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a resumed training needs, by name: masters, moments, step counts."""
        out: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            if master is not self._params[name]:
                out[f"master.{name}"] = master
            for key, value in self._adamw.state.get(master, {}).items():
                out[f"{key}.{name}"] = value
        return out

    def load(
        self,
        read: Callable[[str], Tensor | None],
        read_weight: Callable[[str], Tensor | None],
    ) -> None:
        """Restore ``tensors``.

        Args:
            read: returns a tensor by its name, None for one that was not saved.
            read_weight: the same for parameters by theirs. One that was its own master has no
                other, and its master here would keep the weights that the training began with.
        """
        for name, master in self.masters.items():
            saved, p = read(f"master.{name}"), self._params[name]
            if saved is None and master is not p:
                weight = read_weight(name)
                saved = p if weight is None else weight
            if saved is not None:
                with torch.no_grad():
                    master.copy_(saved)
            state = {key: read(f"{key}.{name}") for key in ADAMW_STATE}
            if state["step"] is not None:
                self._adamw.state[master] = {
                    key: t.to("cpu" if key == "step" else master.device)
                    for key, t in state.items()
                    if t is not None
                }


def decay_groups(params: Iterable[Tensor], cfg: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer: only weights decay, not biases and norms."""
    weights: list[Tensor] = []
    others: list[Tensor] = []
    for p in params:
        # A partitioned (ZeRO-3) parameter is empty; ``ds_shape`` is the shape of the whole.
        (weights if len(getattr(p, "ds_shape", p.shape)) > 1 else others).append(p)
    groups = ((weights, cfg.weight_decay), (others, 0.0))
    return [{"params": ps, "weight_decay": decay} for ps, decay in groups if ps]


def _master(p: Tensor) -> Tensor:
    if p.dtype in (torch.float32, torch.float64):
        return p
    return p.detach().to(torch.float32).requires_grad_()
