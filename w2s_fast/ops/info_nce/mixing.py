"""Hard negatives mixed from others, on the embeddings of a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.dtypes import LOGIT_DTYPES, accumulator

RULES = ("pairs", "list")


@checked
def mix_hard_negatives(
    queries: Tensor,
    negatives: Tensor,
    *,
    rule: str = "pairs",
    count: int = 1,
    temperature: float = 0.05,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mix further hard negatives of each query from those that it has.

    ``"pairs"``: a h_j + (1 - a) h_k of two different negatives of the query, a drawn from
    Beta(2, 2). ``"list"``: sum_k softmax_k(q h_k / temperature) h_k, over all of them. Both are
    the online hard-negative mixing of KaLM-Embedding-V2 (Zhao et al. 2025, arXiv 2506.20923), in
    plain PyTorch: O(N K D), ``"list"`` in fp32 for embeddings of 16 bits. Flatten the result and
    append it to the documents of ``info_nce``; ``normalize=True`` there gives mixtures length 1.

    Args:
        queries: (N, D), fp32, bf16, fp16 or fp64. Get gradients under ``"list"``.
        negatives: (N, K, D), same dtype, K >= 2 under ``"pairs"``. Get gradients.
        rule: ``"pairs"`` or ``"list"``.
        count: how many to mix for each query; 1 under ``"list"``, whose result is not random.
        temperature: of the softmax.
        generator: of the random numbers, on the device of the negatives; None: the default one.

    Returns:
        (N, count, D) in the dtype of the negatives.

    Raises:
        W2SError: for shapes, dtypes or options that do not fit.
    """
    _check(queries, negatives, rule, count, temperature)
    if rule == "list":
        return _mix_all(queries, negatives, temperature).to(negatives.dtype)
    n, k, d = negatives.shape
    draw: dict[str, Any] = {"device": negatives.device, "generator": generator}
    first = torch.randint(k, (n, count), **draw)
    second = (first + torch.randint(1, k, (n, count), **draw)) % k
    # The median of three uniform numbers is Beta(2, 2).
    share = torch.rand(n, count, 3, **draw).median(2)[0].unsqueeze(2).to(negatives.dtype)
    one, two = (negatives.gather(1, at.unsqueeze(2).expand(n, count, d)) for at in (first, second))
    return torch.lerp(two, one, share)


def _mix_all(queries: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Return (N, 1, D) in fp32 (fp64), also under autocast.

    A similarity of 16 bits divided by a small temperature is off by whole units of the exponent.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, h = (x.to(accumulator(x.dtype)) for x in (queries, negatives))
        share = (torch.einsum("nd,nkd->nk", q, h) / temperature).softmax(1)
        return torch.einsum("nk,nkd->nd", share, h).unsqueeze(1)


def _check(queries: Tensor, negatives: Tensor, rule: str, count: int, temperature: float) -> None:
    if rule not in RULES:
        raise W2SError(f"rule is {rule!r}; expected one of {RULES}")
    if queries.dim() != 2 or queries.dtype not in LOGIT_DTYPES:
        raise W2SError(
            f"queries are {queries.dtype} {tuple(queries.shape)}; expected (N, D) embeddings"
        )
    n, d = queries.shape
    least = 2 if rule == "pairs" else 1
    shape = tuple(negatives.shape)
    fits = negatives.dim() == 3 and shape[0] == n and shape[2] == d and shape[1] >= least
    if not fits or negatives.dtype != queries.dtype:
        raise W2SError(
            f"negatives are {negatives.dtype} {shape}; expected {queries.dtype} ({n}, K, {d}) with "
            f"K of {least} or more"
        )
    if count < 1 or (rule == "list" and count != 1):
        raise W2SError(f"count is {count}; expected 1{' or more' if rule == 'pairs' else ''}")
    if not 0 < temperature < math.inf:
        raise W2SError(f"temperature is {temperature}; expected a positive number, such as 0.05")
