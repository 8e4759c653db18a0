"""Cases of the preference losses, and the formulas of the papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from w2s_fast.losses.preference import (
    Answers,
    Preference,
)
from w2s_fast.losses.preference.kto import KTO

FP32, FP64 = torch.float32, torch.float64


Z0 = 0.35  # KTO's baseline in every call through ``run``


def answers(n: int, seed: int, dtype: torch.dtype = FP32, spread: float = 1.0) -> Answers:
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 40, (n,), generator=g)
    logp = -length * torch.rand(n, generator=g, dtype=FP64) * 2
    reference = logp + spread * torch.randn(n, generator=g, dtype=FP64)
    target = spread * torch.randn(n, generator=g, dtype=FP64)
    return Answers(logp.to(dtype), reference.to(dtype), length, target.to(dtype))


def run(loss: Preference, first: Answers, second: Answers, q: Any = 1.0, **kw: Any) -> Any:
    return loss(first, second, q, **({"baseline": Z0} if isinstance(loss, KTO) else {}), **kw)


# The hard losses as printed, with torch's primitives only and none of the package's.
def dpo(a: Answers, b: Answers, beta: float = 0.1) -> Tensor:
    h = beta * (a.logp - b.logp) - beta * (a.reference - b.reference)
    return torch.log1p((-h).exp())


def dpo_norm(a: Answers, b: Answers, beta: float = 5.0) -> Tensor:
    h = beta * (a.logp - a.reference) / a.length - beta * (b.logp - b.reference) / b.length
    return torch.log1p((-h).exp())


def ipo(a: Answers, b: Answers, tau: float = 0.1) -> Tensor:
    h = a.logp / a.length - b.logp / b.length - a.reference / a.length + b.reference / b.length
    return (h - 1 / (2 * tau)) ** 2


def simpo(a: Answers, b: Answers, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    h = beta * a.logp / a.length - beta * b.logp / b.length - gamma
    return torch.log1p((-h).exp())


def orpo(a: Answers, b: Answers, lam: float = 0.1) -> Tensor:
    p, r = (a.logp / a.length).exp(), (b.logp / b.length).exp()
    ratio = (p / (1 - p)) / (r / (1 - r))
    return -a.logp / a.length - lam * torch.log(1 / (1 + 1 / ratio))


def cpo(a: Answers, b: Answers, beta: float = 0.1, nll_coef: float = 1.0) -> Tensor:
    h = beta * a.logp - beta * b.logp
    return torch.log1p((-h).exp()) - nll_coef * a.logp / a.length


def kto(a: Answers, b: Answers, beta: float = 0.1, good: float = 1.0, bad: float = 1.0) -> Tensor:
    up = 1 / (1 + (-beta * (a.logp - a.reference - Z0)).exp())
    down = 1 / (1 + (-beta * (Z0 - (b.logp - b.reference))).exp())
    return good - good * up + bad - bad * down


def bradley_terry(a: Answers, b: Answers) -> Tensor:
    return -torch.log(a.logp.exp() / (a.logp.exp() + b.logp.exp()))


def wspo(a: Answers, b: Answers, gamma: float = 0.1) -> Tensor:
    return (gamma * (a.logp - a.reference) / a.length - a.target / a.length) ** 2


HARD: dict[str, Callable[[Answers, Answers], Tensor]] = {
    "dpo": dpo,
    "dpo_norm": dpo_norm,
    "ipo": ipo,
    "simpo": simpo,
    "orpo": orpo,
    "cpo": cpo,
    "kto": kto,
    "bradley_terry": bradley_terry,
    "wspo": wspo,
}


def soft(name: str, a: Answers, b: Answers, q: Tensor, weight: Tensor) -> Tensor:
    return (weight * (q * HARD[name](a, b) + (1 - q) * HARD[name](b, a))).sum()
