"""The exact median of many scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

import w2s_fast
from bench.harness.cpu_timing import Candidate

SIZES = (1_000_000, 10_000_000, 1 << 25)
PROVIDERS = ("ours", "torch_quantile", "sort", "kthvalue")
TORCH_LIMIT = 1 << 24  # torch.quantile refuses more elements


def make_inputs(n: int) -> Tensor:
    """Top probabilities of a student: (N,) fp32 in (0, 1)."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, generator=g).mul_(2.0).sigmoid_()


def candidates(scores: Tensor, providers: Sequence[str]) -> dict[str, Candidate]:
    """Ways to the median; ``kthvalue`` finds one order statistic, without interpolation."""
    n = scores.numel()
    table = {
        "ours": partial(w2s_fast.quantile, scores, 0.5),
        "torch_quantile": partial(torch.quantile, scores, 0.5),
        "sort": partial(torch.sort, scores),
        "kthvalue": partial(torch.kthvalue, scores, (n + 1) // 2),
    }
    if n > TORCH_LIMIT:
        del table["torch_quantile"]
    found = {name: Candidate(call) for name, call in table.items() if name in providers}
    found["floor_read"] = Candidate(scores.sum)
    return found


def error(scores: Tensor) -> float:
    """Distance of our median from the definition in fp64."""
    truth = scores.double().sort().values
    n = truth.numel()
    middle = (truth[(n - 1) // 2] + truth[n // 2]) / 2
    return abs(w2s_fast.quantile(scores, 0.5).double() - middle).item()
