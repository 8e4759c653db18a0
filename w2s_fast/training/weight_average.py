"""The weights that a training ends with: a mean over steps, and a mean with the initial ones.

Steps at a large learning rate end at a point that rounding and the order of the rows decide; a mean
over steps depends on both much less. A mean with the initial weights undoes a part of what was
learned, of it what was fitted last and least: errors of weak labels among it. Each process keeps an
equal share of every weight in fp32, whatever the engine shards, so the result is the same for any
number of processes and any ZeRO stage.

Sources: tail average: Polyak & Juditsky 1992; Izmailov et al. 2018 (arXiv 1803.05407), every step
with weight 1. Interpolation: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-
FT, arXiv 2109.01903), equation 1; Zhang et al. 2023 (BANG, arXiv 2309.17230) on why it helps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World
from w2s_fast.models.weights import gathered, module_tensors, share_of, whole_of
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.engine import Engine, ReadTensor, read_required

# A product B A of LoRA changes in proportion to B; interpolating both would square alpha.
_NOT_INTERPOLATED = "lora_A"


class WeightAverage:
    """The final weights of all trained parameters, from the masters after each step.

    Made before the first step or a resumption: a collective call.
    """

    def __init__(
        self, engine: Engine, model: nn.Module, cfg: TrainConfig, steps: int, world: World
    ) -> None:
        self._engine, self._model, self._world = engine, model, world
        self._cfg, self._first = cfg, cfg.first_averaged(steps)
        self._shares: dict[str, Tensor] = {}  # (1, n / processes) by name
        self._initial: dict[str, Tensor] = {}
        if cfg.interpolation < 1:
            self._initial = {
                name: share_of(weight, self._world)
                for name, weight in engine.masters()
                if _NOT_INTERPOLATED not in name
            }

    def add(self, done: int) -> None:
        """Add the weights after ``done`` steps, if they are among the last; a collective call."""
        n = done - self._first
        if n < 1:
            return
        for name, weight in self._engine.masters():
            share = share_of(weight, self._world)
            if n == 1:
                self._shares[name] = share
            else:
                self._shares[name].lerp_(share, self._cfg.share_in_mean(n))

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the model's weights by the final ones, in their dtype; a collective call."""
        for name, weight in module_tensors(self._model).items():
            if name not in self._shares:
                continue
            share = self._shares[name]
            if name in self._initial:
                share = self._initial[name].lerp(share, self._cfg.interpolation)
            whole = whole_of(share, weight, self._world)
            with gathered([weight], change=True):
                weight.copy_(whole)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield both parts, whole and by name; a collective call."""
        for name, weight in module_tensors(self._model).items():
            for kind, shares in (("average", self._shares), ("initial", self._initial)):
                if name in shares:
                    yield f"{kind}.{name}", whole_of(shares[name], weight, self._world)

    def load(self, read: ReadTensor, done: int) -> None:
        """Restore ``tensors`` of a checkpoint after ``done`` steps; a collective call."""
        for name in self._initial:
            whole = read_required(read, f"initial.{name}").to(self._initial[name].device)
            self._initial[name] = share_of(whole, self._world)
        if done <= self._first:
            return
        for name, weight in self._engine.masters():
            mean = read_required(read, f"average.{name}").to(weight.device)
            self._shares[name] = share_of(mean, self._world)
