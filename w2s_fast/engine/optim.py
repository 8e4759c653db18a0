"""AdamW that never loses a small update: parameters below fp32 have an fp32 master.

At lr 1e-5 most AdamW updates are smaller than half a bf16 step of the weight they change and would
round away. Masters, moments and accumulated gradients are fp32; a bf16 parameter is the rounded
copy of its master.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from w2s_fast.engine.config import TrainConfig
from w2s_fast.errors import W2SError


class MasterAdamW:
    """``torch.optim.AdamW`` over the masters of a module's trainable parameters."""

    def __init__(self, model: nn.Module, cfg: TrainConfig) -> None:
        self._params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._params:
            raise W2SError("the model has no trainable parameters; expected at least one")
        self._masters = {n: _master(p) for n, p in self._params.items()}
        groups = [
            {"params": [m for m in self._masters.values() if (m.dim() > 1) == decayed],
             "weight_decay": cfg.weight_decay if decayed else 0.0}
            for decayed in (True, False)
        ]  # fmt: skip
        self._adamw = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=cfg.lr,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.eps,
            foreach=True,
        )
        self._clip_norm = cfg.clip_norm

    def accumulate(self) -> None:
        """Move low-precision gradients into fp32 ones, so that sums over micro-batches are exact
        to fp32 and the low-precision gradient is freed."""
        for name, p in self._params.items():
            master = self._masters[name]
            if master is p or p.grad is None:
                continue
            if master.grad is None:
                master.grad = p.grad.to(master.dtype)
            else:
                master.grad.add_(p.grad)
            p.grad = None

    def step(self, lr: float) -> None:
        """Clip, update, round the masters back into the parameters, drop the gradients."""
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._masters.values(), self._clip_norm)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self._params.items():
                if self._masters[name] is not p:
                    p.copy_(self._masters[name])

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed training needs, by name: masters, moments, step counts."""
        out: dict[str, Tensor] = {}
        for name, master in self._masters.items():
            if master is not self._params[name]:
                out[f"master.{name}"] = master
            for key, value in self._adamw.state.get(master, {}).items():
                out[f"{key}.{name}"] = value
        return out

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` gave."""
        for name, master in self._masters.items():
            if f"master.{name}" in tensors:
                with torch.no_grad():
                    master.copy_(tensors[f"master.{name}"])
            state = {
                key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else master.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in tensors
            }
            if state:
                self._adamw.state[master] = state


def _master(p: Tensor) -> Tensor:
    if p.dtype in (torch.float32, torch.float64):
        return p
    return p.detach().to(torch.float32).requires_grad_()
