"""A loss that fails where rounding would decide: near ties at a batch threshold.

Scores are compared with a threshold over the batch. Where a score lies within rounding of it,
another batch shape, backend or processor may decide the row otherwise, and a training then goes
another way by much more than rounding. A test that compares trainings needs data without such rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROOM = 1e-5  # a hundred times what fp32 margins of size 1 differ by between processors


class Decided:
    """Wraps a loss of two classes; ``nearest`` is the smallest distance met in any call."""

    def __init__(self, loss: Any, room: float = ROOM) -> None:
        self._loss, self._room, self.nearest = loss, room, float("inf")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def __repr__(self) -> str:
        return repr(self._loss)

    def __call__(self, logits: Tensor, weak: Tensor, **given: Any) -> Any:
        if self._loss.batch_rule(logits.shape[1]) is not None and logits.shape[1] == 2:
            self._look(logits.detach().double(), weak, given)
        return self._loss(logits, weak, **given)

    def _look(self, z: Tensor, weak: Tensor, given: dict[str, Any]) -> None:
        weight, at = given.get("weight"), given.get("threshold")
        if at is None:
            at = self._loss.threshold(z, weak, weight=weight, state=given.get("state"))
        score = z[:, 0] - z[:, 1]
        counted = torch.ones_like(score, dtype=torch.bool) if weight is None else weight != 0
        # A threshold that is an order statistic is one of the scores, and moves with it.
        distance = (score - at.double().flatten()[0])[counted].abs().sort().values
        distance = distance[1:] if distance.numel() and float(distance[0]) < 1e-12 else distance
        if distance.numel():
            self.nearest = min(self.nearest, float(distance[0]))
        assert self.nearest > self._room, (
            f"a score lies {self.nearest:.1e} from the threshold of its batch: rounding would "
            "decide its class; take other data"
        )
