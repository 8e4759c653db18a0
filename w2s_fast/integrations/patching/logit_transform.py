"""Transform of a head's output before the cross-entropy: scale, bias, soft-cap, classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """Transform of the head's output z: softcap tanh((scale z + bias) / softcap).

    Attributes:
        classes: number of leading classes that are kept; None for all.
        softcap: 0 for none.
        scale: factor of z, including the head's own bias.
        bias: broadcasts to (V,); added after ``scale``; None for none.
    """

    softcap: float = 0.0
    scale: float = 1.0
    bias: Tensor | None = None
    classes: int | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Apply the transform to the head's output (..., V)."""
        z = z[..., : self.classes] * self.scale
        z = z if self.bias is None else z + self.bias
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z

    def rounded(self) -> tuple[float, float]:
        """Return (softcap, scale), rounded so that equivalent ways to compute them are equal."""
        return float(f"{self.softcap:.6g}"), float(f"{self.scale:.6g}")
