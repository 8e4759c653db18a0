"""Exact order statistics over all ranks of a process group, without moving the scores.

A rank is found digit by digit: each round all-reduces 2048 counts, so N scores on R ranks cost
three messages of 16 KiB for any N (six for fp64), and one minimum for the next larger score.
Everything stays in tensors on the scores' device; nothing waits for a value. Every rank must call
with the same dtype and the same statistic; ranks may have different numbers of scores, 0 included.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.quantile.keys import BINS, rounds_of, score_of
from w2s_fast.ops.quantile.ref import between


class RankedScores(NamedTuple):
    """0-d tensors, equal on all ranks: scores of ranks k and k + 1, their number, any NaN."""

    at: Tensor
    next: Tensor
    n_kept: Tensor
    unordered: Tensor


def check_group(group: Any) -> None:
    """Raise ``W2SError`` unless ``group`` is a process group that this process belongs to."""
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:
        raise W2SError("this process is not a member of the group; only members may call")
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise W2SError(
            f"group is {group!r}; expected a torch.distributed process group "
            "(torch.distributed.group.WORLD for all processes)"
        )


def search(
    kernels: ModuleType,
    scores: Tensor,
    keep: Tensor | None,
    rank_of: Callable[[Tensor], Tensor],
    group: Any,
) -> RankedScores:
    """Find the kept score of 0-based rank ``rank_of(n_kept)``, clamped, and the next one."""
    prefix = torch.zeros((), dtype=torch.int64, device=scores.device)
    rank = same = n_kept = unordered = prefix
    for step, (_, bits) in enumerate(rounds_of(scores.dtype)):
        counts = kernels.histogram(scores, keep, prefix, step)
        dist.all_reduce(counts, group=group)
        counts, extra = counts[:BINS], counts[BINS]
        if step == 0:
            n_kept, unordered = counts.sum(), extra > 0
            target_rank = torch.minimum(rank_of(n_kept), n_kept - 1).clamp_min(0)
            rank = target_rank
        below = counts.cumsum(0)
        digit = (below <= rank).sum().clamp_max(BINS - 1)
        same = counts.gather(0, digit.unsqueeze(0)).squeeze(0)
        rank = rank - (below.gather(0, digit.unsqueeze(0)).squeeze(0) - same)
        prefix = (prefix << bits) | digit
    at = score_of(prefix, scores.dtype)
    above = kernels.successor(scores, keep, at)
    dist.all_reduce(above, op=dist.ReduceOp.MIN, group=group)
    alone = (rank + 1 < same) | (target_rank + 1 >= n_kept)
    return RankedScores(at, torch.where(alone, at, above), n_kept, unordered)


def quantile(
    kernels: ModuleType, scores: Tensor, q: Tensor, keep: Tensor | None, group: Any
) -> Tensor:
    """Return the ``quantile`` of all ranks' scores together."""
    valid = (q >= 0) & (q <= 1)

    def position(n_kept: Tensor) -> Tensor:
        return torch.where(valid, q, 0.0) * (n_kept - 1).clamp_min(0)

    ranked = search(kernels, scores, keep, lambda n_kept: position(n_kept).floor().long(), group)
    place = position(ranked.n_kept)
    f = (place - place.floor()).to(ranked.at.dtype)
    value = between(ranked.at, ranked.next, f)
    value = torch.where(ranked.n_kept > 0, value, float("inf"))
    return torch.where(ranked.unordered | ~valid, float("nan"), value)


def kth_value(
    kernels: ModuleType, scores: Tensor, rank: Tensor, keep: Tensor | None, group: Any
) -> Tensor:
    """Return the kept score of 0-based ``rank`` among all ranks; NaN if there is none."""
    ranked = search(kernels, scores, keep, lambda _: rank, group)
    missing = (rank < 0) | (rank >= ranked.n_kept) | ranked.unordered
    return torch.where(missing, float("nan"), ranked.at)


def top_mask(
    kernels: ModuleType, scores: Tensor, fraction: Tensor, keep: Tensor | None, group: Any
) -> Tensor:
    """Return this rank's part of the mask; for ties see ``quantile.api``."""

    def chosen(n_kept: Tensor) -> Tensor:
        return top_count(fraction, n_kept)

    ranked = search(kernels, scores, keep, lambda n_kept: n_kept - chosen(n_kept), group)
    count = chosen(ranked.n_kept)
    at = torch.where((count > 0) & ~ranked.unordered, ranked.at, float("nan"))
    at = at.to(accumulator(scores.dtype))
    me = dist.get_rank(group)
    counts = torch.zeros((dist.get_world_size(group), 2), dtype=torch.int64, device=scores.device)
    counts[me] = kernels.count_at(scores, keep, at)
    dist.all_reduce(counts, group=group)
    ties = count - counts[:, 0].sum() - counts[:me, 1].sum()
    return kernels.threshold_mask(scores, keep, at, ties.clamp_min(0))


def top_count(fraction: Tensor, n_kept: Tensor) -> Tensor:
    """Return round(fraction * n_kept), halves to even; 0 for a fraction outside [0, 1]."""
    valid = (fraction >= 0) & (fraction <= 1)
    return (torch.where(valid, fraction, 0.0) * n_kept).round().long()
