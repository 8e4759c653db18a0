"""The mean of the trained weights over the last steps of a training (tail averaging).

Steps at a large learning rate end at a point that rounding and the order of the rows decide; their
mean depends on both much less. Each process keeps an equal share of every weight in fp32, whatever
the engine shards, so the mean is the same for any number of processes and any ZeRO stage.

Source: Polyak & Juditsky 1992; Izmailov et al. 2018 (arXiv 1803.05407), every step with weight 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World
from w2s_fast.models.weights import gathered, module_tensors, shape_of
from w2s_fast.training.engine import Engine, ReadTensor, read_required


class WeightAverage:
    """The mean of the masters of all trained weights after the steps beyond ``first``."""

    def __init__(self, engine: Engine, model: nn.Module, first: int, world: World) -> None:
        self._engine, self._model, self._first, self._world = engine, model, first, world
        self._shares: dict[str, Tensor] = {}  # (1, n / processes) by name

    def add(self, done: int) -> None:
        """Add the weights after ``done`` steps, if they are among the last; a collective call."""
        n = done - self._first
        if n < 1:
            return
        for name, weight in self._engine.masters():
            share = self._share(weight)
            if n == 1:
                self._shares[name] = share.clone()
            else:
                self._shares[name].lerp_(share, 1 / n)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the model's weights by the mean, in their dtype; a collective call."""
        for name, weight in module_tensors(self._model).items():
            if name not in self._shares:
                continue
            mean = self._whole(name, weight)
            with gathered([weight], change=True):
                weight.copy_(mean)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the mean, whole and by name; a collective call."""
        for name, weight in module_tensors(self._model).items():
            if name in self._shares:
                yield f"average.{name}", self._whole(name, weight)

    def load(self, read: ReadTensor, done: int) -> None:
        """Restore ``tensors`` of a checkpoint after ``done`` steps; a collective call."""
        if done <= self._first:
            return
        for name, weight in self._engine.masters():
            mean = read_required(read, f"average.{name}").to(weight.device)
            self._shares[name] = self._share(mean).clone()

    def _share(self, weight: Tensor) -> Tensor:
        """Return this process's share of a whole weight, with zeros after its end."""
        flat = weight.detach().flatten()
        length = -(-len(flat) // self._world.size)
        own = flat[self._world.rank * length : (self._world.rank + 1) * length]
        return nn.functional.pad(own, (0, length - len(own)))[None]

    def _whole(self, name: str, like: Tensor) -> Tensor:
        """Return the mean of a weight from the shares of all processes."""
        shape = shape_of(like)
        flat = self._world.all_gather(self._shares[name]).flatten()
        return flat[: shape.numel()].view(shape)
