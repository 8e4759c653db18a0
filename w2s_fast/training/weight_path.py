"""The line between two sets of weights of one model, walked in place.

    theta(alpha) = (1 - alpha) theta_0 + alpha theta_1

Both ends stay in memory, an equal share of every weight on each process, so predictions at any
number of coefficients need one load. Ends are met exactly. Weights that both ends share are not
stored. Of LoRA matrices B alone moves, so that the change of a weight, B A, is in proportion to
alpha.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903),
equation 1, whose figures sweep alpha; Zhang et al. 2023 (BANG, arXiv 2309.17230).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError
from w2s_fast.models.weights import (
    gathered,
    load_module,
    module_tensors,
    share_of,
    whole_of,
)


class WeightPath:
    """Moves a model between the weights it has now, alpha = 0, and others, alpha = 1.

    Making one is a collective call; the model then has the weights of alpha = 1.

    Args:
        model: whole, or partitioned by ZeRO-3.
        end: weights at alpha = 1, as ``read_tensors`` returns them.
        world: processes of the job.

    Raises:
        W2SError: the weights do not fit the model, or its LoRA matrices B are not zero at the
            start, where the line would not meet the start.
    """

    def __init__(
        self, model: nn.Module, end: Mapping[str, Tensor], world: World = SINGLE_PROCESS
    ) -> None:
        self._model, self._world = model, world
        start = {name: self._share(t) for name, t in module_tensors(model).items()}
        load_module(model, end, world)
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}
        for name, t in module_tensors(model).items():
            own = self._share(t)
            if not world.sum(torch.tensor(float(not torch.equal(own, start[name])))):
                continue
            if "lora_A" in name or not own.is_floating_point():
                continue  # as at the end
            if "lora_B" in name and world.sum(start[name].abs().sum().float()):
                raise W2SError(
                    f"{name!r} is not zero in the initial weights; expected a student whose LoRA "
                    "updates start from zero, so that B alone leads back to it"
                )
            self._ends[name] = start[name], own

    @torch.no_grad()
    def move(self, alpha: float) -> None:
        """Set the weights of coefficient ``alpha``, a finite number; a collective call.

        Each follows from both ends and is rounded once, in any order of coefficients.
        """
        if not math.isfinite(alpha):
            raise W2SError(f"alpha is {alpha}; expected a finite number, as a rule in [0, 1]")
        tensors = module_tensors(self._model)
        for name, (start, end) in self._ends.items():
            whole = whole_of(start.lerp(end, alpha), tensors[name], self._world)
            with gathered([tensors[name]], change=True):
                tensors[name].copy_(whole)

    def _share(self, tensor: Tensor) -> Tensor:
        with gathered([tensor]):
            return share_of(tensor, self._world)
