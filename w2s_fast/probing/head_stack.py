"""Many linear heads as one matrix, with their optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from w2s_fast.training.config import TrainConfig


class View(NamedTuple):
    """Features (B, D) that some heads read in a step.

    The first view of a step is of all rows as they are, for every head that no other view names.
    """

    heads: Tensor  # (S,) int64
    x: Tensor


class HeadStack:
    """Weights (H C, D) and biases (H C,) of all heads, with the AdamW of ``MasterAdamW``.

    Args:
        features: (N, D) of the training.
        runs: (H,) number of the run that each head belongs to.
        classes: C.
        cfg: of the training.
        head: initial value of every head; None: zero.
    """

    def __init__(
        self,
        features: Tensor,
        runs: Sequence[int],
        classes: int,
        cfg: TrainConfig,
        head: nn.Linear | None,
    ) -> None:
        heads = len(runs)
        self.runs = torch.tensor(runs, device=features.device)
        dtype = torch.promote_types(features.dtype, torch.float32)
        self._shape, self._cfg, self._steps = (heads, classes), cfg, 0
        self.weight = features.new_zeros(heads * classes, features.shape[1], dtype=dtype)
        self.bias = features.new_zeros(heads * classes, dtype=dtype)
        if head is not None:
            self.weight.copy_(head.weight.detach().repeat(heads, 1))
            self.bias.copy_(head.bias.detach().repeat(heads))
        self._moments = [
            (torch.zeros_like(p), torch.zeros_like(p)) for p in (self.weight, self.bias)
        ]

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of all heads."""
        return [self.weight, self.bias]

    def logits(self, views: Sequence[View]) -> Tensor:
        """Return (H, B, C) logits, contiguous, each head's of the view that it reads."""
        whole = views[0].x
        z = torch.addmm(self.bias, whole, self.weight.T).view(len(whole), *self._shape)
        for heads, x in views[1:]:
            weight, bias = self.of(heads)
            z[:, heads] = torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T).view(
                len(x), -1, self._shape[1]
            )
        return z.transpose(0, 1).contiguous()

    def of(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights (S, C, D) and biases (S, C) of some heads (S,), copied."""
        return self.weight.view(*self._shape, -1)[heads], self.bias.view(self._shape)[heads]

    def update(self, grad: Tensor, views: Sequence[View], lr: Tensor) -> None:
        """One step from the gradients (H, B, C) of the logits; ``lr`` (H,)."""
        x, by_class = views[0].x, grad.transpose(1, 2).contiguous()
        columns = by_class.view(-1, len(x))
        grads = [columns @ x, columns.sum(1)]
        by_head = grads[0].view(*self._shape, -1)
        for heads, view in views[1:]:
            rows = by_class[heads].flatten(0, 1) @ view
            by_head[heads] = rows.view(-1, *by_head.shape[1:])
        if self._cfg.clip_norm is not None:
            self._clip(grads, self._cfg.clip_norm)
        rate = lr.to(x).repeat_interleave(self._shape[1])
        self._steps += 1
        self._adamw(self.weight, grads[0], self._moments[0], rate[:, None], decay=True)
        self._adamw(self.bias, grads[1], self._moments[1], rate, decay=False)

    def _clip(self, grads: list[Tensor], limit: float) -> None:
        """Clip the heads of each run by their norm, as ``clip_grad_norm_`` does."""
        weight, bias = (g.view(self._shape[0], -1) for g in grads)
        square = weight.square().sum(1) + bias.square().sum(1)
        norm = square.new_zeros(len(square)).index_add(0, self.runs, square)[self.runs].sqrt()
        factor = (limit / (norm + 1e-6)).clamp_max(1.0)[:, None]
        weight.mul_(factor)
        bias.mul_(factor)

    def _adamw(
        self, p: Tensor, grad: Tensor, moments: tuple[Tensor, Tensor], lr: Tensor, *, decay: bool
    ) -> None:
        cfg, (first, second) = self._cfg, moments
        if decay and cfg.weight_decay:
            p.mul_(1 - lr * cfg.weight_decay)
        first.lerp_(grad, 1 - cfg.beta1)
        second.mul_(cfg.beta2).addcmul_(grad, grad, value=1 - cfg.beta2)
        size = (1 - cfg.beta2**self._steps) ** 0.5
        denominator = (second.sqrt() / size).add_(cfg.eps)
        p.addcmul_(first / denominator, lr, value=-1 / (1 - cfg.beta1**self._steps))
