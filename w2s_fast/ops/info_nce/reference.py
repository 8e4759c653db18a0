"""InfoNCE as plain differentiable torch, with all (N, M) similarities: the truth of the tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_reference(
    queries: Tensor,
    documents: Tensor,
    *,
    positives: Tensor | None = None,
    temperature: float = 0.05,
    query_groups: Tensor | None = None,
    document_groups: Tensor | None = None,
    negatives: str = "other_groups",
    margin: float | None = None,
    negative_mask: Tensor | None = None,
    focal_gamma: float = 0.0,
    symmetric: bool = False,
    normalize: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Compute ``info_nce`` in the dtype of the inputs; see it for the arguments."""
    if normalize:
        queries, documents = F.normalize(queries, dim=-1), F.normalize(documents, dim=-1)
    s = queries @ documents.t()
    target = torch.arange(len(s), device=s.device) if positives is None else positives
    counted = target != -100
    if weight is not None:
        counted = counted & (weight != 0)
    keep = torch.ones_like(s, dtype=torch.bool)
    if query_groups is not None and document_groups is not None:
        same = (query_groups[:, None] == document_groups) & (document_groups >= 0)
        keep &= same if negatives == "same_group" else ~same
    if negative_mask is not None:
        keep &= negative_mask
    total = _direction(s, keep, target, counted, margin, temperature, focal_gamma)
    if symmetric:
        other = _direction(s.t(), keep.t(), target, counted, margin, temperature, focal_gamma)
        total = (total + other) / 2
    if weight is not None:
        total = torch.where(counted, total * weight, 0.0)
    if reduction == "none":
        return total
    count = counted.sum() if weight is None else torch.where(counted, weight, 0.0).sum()
    return total.sum() if reduction == "sum" else total.sum() / count


def _direction(
    s: Tensor,
    keep: Tensor,
    target: Tensor,
    counted: Tensor,
    margin: float | None,
    temperature: float,
    focal_gamma: float,
) -> Tensor:
    """Return (N,) focal weight times loss, 0 where a query does not count."""
    at = torch.where(counted, target, 0)[:, None]
    if margin is not None:
        keep = keep & ~(s.detach() > s.detach().gather(1, at) + margin)
    keep = keep.scatter(1, at, True)
    z = (s / temperature).masked_fill(~keep, -torch.inf)
    loss = F.cross_entropy(z, at[:, 0], reduction="none")
    if focal_gamma:
        loss = loss * (-torch.expm1(-loss.detach())) ** focal_gamma
    return torch.where(counted, loss, 0.0)


def info_nce_sample(
    n: int, v: int, dtype: torch.dtype, device: str, seed: int, **options: Any
) -> dict[str, Any]:
    """Return the arguments of one call with ``v`` documents, 0 for as many as queries.

    Documents lean towards their queries as those of a trained encoder do, several belong to one
    group, one query has weight 0 and one no positive.

    Args:
        options: further arguments of the call, over those of the sample.
    """
    g = torch.Generator().manual_seed(seed)
    m, d = max(v, 1), 24
    target = torch.randint(0, m, (n,), generator=g)
    queries = F.normalize(torch.randn(n, d, generator=g), dim=1)
    documents = F.normalize(torch.randn(m, d, generator=g), dim=1)
    queries = F.normalize(queries + 0.8 * documents[target], dim=1)
    groups = torch.randint(-1, max(m // 4, 2), (m,), generator=g)
    weight = 0.5 + torch.rand(n, generator=g)
    if n > 2:
        weight[1] = 0.0
    if n > 3:
        target[3] = -100
    call = {
        "queries": queries.to(dtype),
        "documents": documents.to(dtype),
        "positives": target,
        "query_groups": groups[target.clamp_min(0)],
        "document_groups": groups,
        "weight": weight,
        "temperature": 0.05,
        **options,
    }
    return {k: x.to(device) if isinstance(x, Tensor) else x for k, x in call.items()}
