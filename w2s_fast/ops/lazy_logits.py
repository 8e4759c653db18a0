"""Logits that were not computed: hidden states and the head that would make them.

Whatever takes logits for a weak-to-strong loss takes these in their place, and goes to the fused
head instead: (n, V) is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.chunking import DEFAULT_MEMORY_MIB


@dataclass(frozen=True, eq=False)
class Projected:
    """Logits (n, V) = hidden weight^T + bias, soft-capped; see ``linear_cross_entropy``.

    Attributes:
        hidden: (n, D).
        weight: (V, D), of the dtype of hidden.
        bias: (V,) or None.
        softcap: logits are softcap tanh(. / softcap); 0: as they are.
        memory_mib: what a chunk of logits may take.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float = 0.0
    memory_mib: float = DEFAULT_MEMORY_MIB

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def shape(self) -> torch.Size:
        """(n, V)."""
        return torch.Size((len(self.hidden), len(self.weight)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return self.hidden.dtype

    @property
    def device(self) -> torch.device:
        """Where they would be."""
        return self.hidden.device

    def detach(self) -> Projected:
        """The same without a graph."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def dense(self) -> Tensor:
        """(n, V) logits after all, for what cannot do without them."""
        z = torch.nn.functional.linear(self.hidden, self.weight, self.bias)
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z


def dense(logits: Tensor | Projected) -> Tensor:
    """Logits as a tensor."""
    return logits.dense() if isinstance(logits, Projected) else logits


# Factors that models put on their logits, by the name in their configuration: (name, divides).
_FACTORS = (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False))


def logit_form(config: Any) -> tuple[float, float]:
    """(softcap, factor): a model's logits are softcap tanh(factor z / softcap) of its head's z."""
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0)
    factor = 1.0
    for name, divides in _FACTORS:
        value = float(getattr(config, name, None) or 1)
        factor *= 1 / value if divides else value
    return softcap, factor
