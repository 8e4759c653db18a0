"""What a model does to the output of its head before it takes the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """What happens to the head's output z: softcap tanh((scale z + bias) / softcap).

    Attributes:
        classes: how many of its classes are left, from the first on; None for all.
        softcap: 0 for none.
        scale: factor of z, of its bias as well.
        bias: broadcasts to (V,); added after ``scale``; None for none.
    """

    softcap: float = 0.0
    scale: float = 1.0
    bias: Tensor | None = None
    classes: int | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Logits of the head's output (..., V)."""
        z = z[..., : self.classes] * self.scale
        z = z if self.bias is None else z + self.bias
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z

    def plain(self) -> tuple[float, float]:
        """(softcap, scale), rounded to what two ways of writing them agree on."""
        return float(f"{self.softcap:.6g}"), float(f"{self.scale:.6g}")
