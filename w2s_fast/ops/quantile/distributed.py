"""Exact order statistics over all ranks of a process group, without moving the scores.

A rank is found digit by digit: each round all-reduces 2048 counts, so N scores on R ranks cost
three messages of 16 KiB whatever N is (six for fp64), and one minimum for the next larger score.
Everything stays in tensors on the scores' device; nothing waits for a value. Every rank must call
with the same dtype and the same statistic; how many scores it has, 0 included, is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.quantile.keys import BINS, accumulator, rounds_of, score_of
from w2s_fast.ops.quantile.ref import between


class Found(NamedTuple):
    """0-d tensors, equal on all ranks: scores of ranks k and k + 1, kept scores, any NaN."""

    at: Tensor
    next: Tensor
    kept: Tensor
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
) -> Found:
    """The kept score of 0-based rank ``rank_of(kept)``, moved into 0 .. kept - 1, and the next."""
    prefix = torch.zeros((), dtype=torch.int64, device=scores.device)
    rank = same = kept = unordered = prefix
    for step, (_, bits) in enumerate(rounds_of(scores.dtype)):
        counts = kernels.histogram(scores, keep, prefix, step)
        dist.all_reduce(counts, group=group)
        counts, extra = counts[:BINS], counts[BINS]
        if step == 0:
            kept, unordered = counts.sum(), extra > 0
            wanted = torch.minimum(rank_of(kept), kept - 1).clamp_min(0)
            rank = wanted
        below = counts.cumsum(0)
        digit = (below <= rank).sum().clamp_max(BINS - 1)
        same = counts.gather(0, digit.unsqueeze(0)).squeeze(0)
        rank = rank - (below.gather(0, digit.unsqueeze(0)).squeeze(0) - same)
        prefix = (prefix << bits) | digit
    at = score_of(prefix, scores.dtype)
    above = kernels.successor(scores, keep, at)
    dist.all_reduce(above, op=dist.ReduceOp.MIN, group=group)
    alone = (rank + 1 < same) | (wanted + 1 >= kept)
    return Found(at, torch.where(alone, at, above), kept, unordered)


def quantile(
    kernels: ModuleType, scores: Tensor, q: Tensor, keep: Tensor | None, group: Any
) -> Tensor:
    """The same number as ``quantile`` of all ranks' scores together."""
    valid = (q >= 0) & (q <= 1)

    def position(kept: Tensor) -> Tensor:
        return torch.where(valid, q, 0.0) * (kept - 1).clamp_min(0)

    found = search(kernels, scores, keep, lambda kept: position(kept).floor().long(), group)
    place = position(found.kept)
    f = (place - place.floor()).to(found.at.dtype)
    value = between(found.at, found.next, f)
    value = torch.where(found.kept > 0, value, float("inf"))
    return torch.where(found.unordered | ~valid, float("nan"), value)


def kth_value(
    kernels: ModuleType, scores: Tensor, rank: Tensor, keep: Tensor | None, group: Any
) -> Tensor:
    """The kept score of 0-based ``rank`` among all ranks' scores; NaN if there is none."""
    found = search(kernels, scores, keep, lambda _: rank, group)
    missing = (rank < 0) | (rank >= found.kept) | found.unordered
    return torch.where(missing, float("nan"), found.at)


def top_mask(
    kernels: ModuleType, scores: Tensor, fraction: Tensor, keep: Tensor | None, group: Any
) -> Tensor:
    """This rank's part of the mask; ties go to lower ranks first."""

    def chosen(kept: Tensor) -> Tensor:
        return wanted(fraction, kept)

    found = search(kernels, scores, keep, lambda kept: kept - chosen(kept), group)
    count = chosen(found.kept)
    at = torch.where((count > 0) & ~found.unordered, found.at, float("nan"))
    at = at.to(accumulator(scores.dtype))
    me = dist.get_rank(group)
    tallies = torch.zeros((dist.get_world_size(group), 2), dtype=torch.int64, device=scores.device)
    tallies[me] = kernels.tally(scores, keep, at)
    dist.all_reduce(tallies, group=group)
    ties = count - tallies[:, 0].sum() - tallies[:me, 1].sum()
    return kernels.mark(scores, keep, at, ties.clamp_min(0))


def wanted(fraction: Tensor, kept: Tensor) -> Tensor:
    """round(fraction * kept), halves to even; 0 where the fraction is not in [0, 1]."""
    valid = (fraction >= 0) & (fraction <= 1)
    return (torch.where(valid, fraction, 0.0) * kept).round().long()
