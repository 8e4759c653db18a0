"""The record of whole rows from the records of vocabulary shards, on every rank.

Rank r holds V_r classes of a row and their record relative to its own maximum M_r. Eleven numbers a
row and rank, and K logits of top-k classes, give the record of
the whole row: sums of exponentials are taken relative to the overall maximum and added.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from w2s_fast.ops.loss_call import Index, Stat

# Rows of the record that are sent; four more columns follow.
_SENT = (Stat.MAX, Stat.LOGS, Stat.ENTROPY, Stat.MASS, Stat.LINEAR, Stat.MEAN, Stat.TAIL)
_COLUMNS = len(_SENT) + 4  # argmax, and of the weak label's top class: mass, logit, id


def gathered(send: Tensor, group: Any) -> Tensor:
    """Gather (R, ...) of every rank's tensor, in rank order."""
    out = send.new_empty((dist.get_world_size(group), *send.shape))
    dist.all_gather(list(out.unbind(0)), send.contiguous(), group=group)
    return out


def merge(
    stats: Tensor,
    index: Tensor,
    top_mass: Tensor,
    rest: Tensor | None,
    first: int,
    widths: tuple[int, int],
    group: Any,
) -> None:
    """Replace a shard's record (12, n) and (3, n) by that of whole rows; class ids become global.

    Args:
        stats, index: the shard's own record. COEF, FACTOR, LOSS and SELF are left to the caller.
        top_mass: (n,) weak mass of ``index[WEAK]``, -inf where the shard has none.
        rest: (n,) residual mass, which every shard counted in its MASS.
        first: id of the shard's first class.
        widths: (V_r, V).
    """
    wide = torch.float64
    send = torch.empty((_COLUMNS, stats.shape[1]), dtype=wide, device=stats.device)
    for row, stat in enumerate(_SENT):
        send[row] = stats[stat]
    send[3] -= 0.0 if rest is None else rest
    send[5] *= widths[0]
    # Ids are exact in fp64.
    send[7] = index[Index.ARGMAX] + first
    send[8] = top_mass
    send[9] = stats[Stat.CHOSEN] + stats[Stat.MAX]
    send[10] = index[Index.WEAK] + first
    top, logs, entropy, mass, linear, mean, tail, best, q_top, chosen, weak = gathered(
        send, group
    ).unbind(1)
    # A shard of nothing but -inf has no sums; NaN is kept, to show in the loss.
    empty = top == -torch.inf
    peak = top.amax(0)
    shift = torch.where(empty, 0.0, top - peak)
    size = torch.where(empty, 0.0, (shift + logs).exp())
    total = size.sum(0)
    all_logs = total.log()
    stats[Stat.MAX] = peak
    stats[Stat.LOGS] = all_logs
    drift = torch.where(empty, 0.0, size / total * (logs - entropy + shift))
    stats[Stat.ENTROPY] = all_logs - drift.sum(0)
    stats[Stat.MASS] = mass.sum(0) + (0.0 if rest is None else rest)
    stats[Stat.LINEAR] = torch.where(mass != 0, linear + mass * shift, 0.0).sum(0)
    lost = torch.where(empty, -torch.inf, mean + widths_of(widths, top, group) * shift)
    stats[Stat.MEAN] = lost.sum(0) / widths[1]
    stats[Stat.TAIL] = _tail(tail, size, total)
    stats[Stat.SCORE] = (-all_logs).exp()
    # max returns the first of equals: the lowest rank, hence the lowest class.
    winner = torch.where(top == peak, 1.0, 0.0).argmax(0, keepdim=True)
    index[Index.ARGMAX] = best.gather(0, winner)[0].to(torch.int64)
    holder = q_top.argmax(0, keepdim=True)
    index[Index.WEAK] = weak.gather(0, holder)[0].to(torch.int64)
    stats[Stat.CHOSEN] = chosen.gather(0, holder)[0] - peak


def _tail(tail: Tensor, size: Tensor, total: Tensor) -> Tensor:
    """Return (N,) log mass outside the top k, from that of each shard and its sum (R, N)."""
    inside = torch.where(size == 0, 0.0, -tail.expm1() * size).sum(0) / total
    outside = (torch.where(size == 0, 0.0, tail) + size.log()).logsumexp(0) - total.log()
    return torch.where(inside < 0.75, (-inside).log1p(), outside)


def widths_of(widths: tuple[int, int], like: Tensor, group: Any) -> Tensor:
    """Return (R, 1) number of classes of every shard."""
    mine = torch.full((1,), float(widths[0]), dtype=like.dtype, device=like.device)
    return gathered(mine, group)
