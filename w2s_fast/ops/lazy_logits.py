"""Lazy logits: hidden states and the head that would compute them.

Every weak-to-strong loss accepts these instead of logits and then uses the fused head: (n, V) is
never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Projected:
    """Logits (n, V) = hidden weight^T + bias, soft-capped; see ``linear_cross_entropy``.

    Attributes:
        hidden: (n, D).
        weight: (V, D), of the dtype of hidden.
        bias: (V,) or None.
        softcap: logits are softcap tanh(. / softcap); 0 for none.
        memory_mib: memory for a chunk of logits, in MiB; None: chosen by device.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float = 0.0
    memory_mib: float | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def shape(self) -> torch.Size:
        """(n, V)."""
        return torch.Size((len(self.hidden), len(self.weight)))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the logits."""
        return self.hidden.dtype

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.hidden.device

    def detach(self) -> Projected:
        """Return a copy without a graph."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def dense(self) -> Tensor:
        """Compute the (n, V) logits, for code that needs them."""
        z = torch.nn.functional.linear(self.hidden, self.weight, self.bias)
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z


def dense(logits: Tensor | Projected) -> Tensor:
    """Return logits as a tensor."""
    return logits.dense() if isinstance(logits, Projected) else logits


# Factors of a model's logits, by their name in its configuration: (name, whether it divides).
_FACTORS = (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False))


def logit_form(config: Any) -> tuple[float, float]:
    """Return (softcap, factor): the logits are softcap tanh(factor z / softcap) of the head's z."""
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0)
    factor = 1.0
    for name, divides in _FACTORS:
        value = float(getattr(config, name, None) or 1)
        factor *= 1 / value if divides else value
    return softcap, factor
