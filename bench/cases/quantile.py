"""The exact median of many scores: inputs, candidates, and the error."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

import w2s_fast
from bench.harness.cpu_timing import Candidate

SIZES = (1_000_000, 10_000_000, 1 << 25)
PROVIDERS = ("ours", "torch_quantile", "sort", "kthvalue")
TORCH_LIMIT = 1 << 24  # torch.quantile raises for more elements


def make_inputs(n: int) -> Tensor:
    """Return (N,) fp32 in (0, 1), like the top probabilities of a student."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, generator=g).mul_(2.0).sigmoid_()


def candidates(scores: Tensor, providers: Sequence[str]) -> dict[str, Candidate]:
    """Return ways to compute the median; ``kthvalue`` is one order statistic, not interpolated."""
    n = scores.numel()
    table = {
        "ours": partial(w2s_fast.quantile, scores, 0.5),
        "torch_quantile": partial(torch.quantile, scores, 0.5),
        "sort": partial(torch.sort, scores),
        "kthvalue": partial(torch.kthvalue, scores, (n + 1) // 2),
    }
    if n > TORCH_LIMIT:
        del table["torch_quantile"]
    timed = {name: Candidate(call) for name, call in table.items() if name in providers}
    timed["floor_read"] = Candidate(scores.sum)
    return timed


def error(scores: Tensor) -> float:
    """Return the distance of our median from its definition in fp64."""
    truth = scores.double().sort().values
    n = truth.numel()
    middle = (truth[(n - 1) // 2] + truth[n // 2]) / 2
    return abs(w2s_fast.quantile(scores, 0.5).double() - middle).item()
