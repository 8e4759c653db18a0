"""Cases of the divergences from a teacher, and their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from w2s_fast.losses.distillation import (
    DISTILLATIONS,
    Distillation,
)
from w2s_fast.ops.targets import SparseTargets

FLOOR, BETA = 1e-8, 0.3


def make(name: str, **kw: Any) -> Distillation:
    return DISTILLATIONS[name](**({"beta": BETA} if name == "jsd" else {}), **kw)


# The definitions, over outcomes of strictly positive probability.
def forward(q: Tensor, p: Tensor) -> Tensor:
    return (q * (q / p).log()).sum(1)


def reverse(q: Tensor, p: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(1)


def jsd(q: Tensor, p: Tensor) -> Tensor:
    m = BETA * q + (1 - BETA) * p
    return BETA * forward(q, m) + (1 - BETA) * forward(p, m)


ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward,
    "reverse_kl": reverse,
    "jsd": jsd,
}


def outcomes(z: Tensor, t: SparseTargets, temperature: float) -> tuple[Tensor, Tensor]:
    """(q, p) over K top-k classes and the rest, for teachers without padding."""
    p = (z / temperature).softmax(1)
    inside = p.gather(1, t.ids)
    p = torch.cat([inside, p.scatter(1, t.ids, 0.0).sum(1, keepdim=True)], 1)
    return torch.cat([t.probs, t.rest[:, None]], 1).to(z.dtype), p
