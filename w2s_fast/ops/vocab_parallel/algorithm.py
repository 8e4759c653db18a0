"""One vocabulary-parallel call: the fused head with V / R rows of it on every rank.

All ranks hold the same hidden states and targets and walk the same chunks. A chunk of the shard's
logits is swept for its record, the records are merged over ranks, and the merged record writes the
shard's part of the gradient over the chunk: no logits travel. dhidden is a sum over shards; the
head's gradient stays where the head is. Thresholds need no message of their own: every rank has
every score.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import Request, backend, normaliser, record, total_loss
from w2s_fast.ops.cross_entropy.ref import soft_cap_slope, unless_own
from w2s_fast.ops.fused_linear import gemm
from w2s_fast.ops.fused_linear.chunks import (
    Gradients,
    Head,
    Wanted,
    add_entries,
    cap_slope,
    fixes_by_rank_one,
)
from w2s_fast.ops.quantile import api as quantile_op
from w2s_fast.ops.results import LinearSolution
from w2s_fast.ops.row_stats import Index, Knobs, Stat
from w2s_fast.ops.targets import Problem, check_labels
from w2s_fast.ops.vocab_parallel.merge import merge


class Shard(NamedTuple):
    """Classes ``first`` .. ``first + width - 1`` of ``total`` live here."""

    first: int
    width: int
    total: int
    group: Any

    def local(self, ids: Tensor) -> Tensor:
        """Class ids of this shard's own count; -1 for those of other shards and for padding."""
        inside = (ids >= self.first) & (ids < self.first + self.width)
        return torch.where(inside, ids - self.first, -1)


def chunk_rows(x: Head, p: Problem, at: Shard) -> int:
    """From the mean width: all ranks must cut alike, and none knows the others' shards."""
    width = -(-at.total // dist.get_world_size(at.group))
    n = p.logits.shape[0]
    return gemm.rows_per_chunk(n, width, x.hidden.dtype.itemsize, x.memory_mib)


class Part(NamedTuple):
    """Some rows of the shard: their logits, local targets, and the record of the whole rows."""

    rows: slice
    problem: Problem
    stats: Tensor
    classes: Tensor  # the record's ids, (3, n)
    listed: Tensor | None  # (n, K) z_id - M of the listed classes of all shards


def local_problem(p: Problem, rows: slice, z: Tensor, at: Shard) -> Problem:
    """Targets of this shard's classes; hard labels become one listed class a row."""
    keep = p.keep()[rows]
    weight = keep.to(p.accumulator) if p.weight is None else p.weight[rows] * keep
    rest = None if p.rest is None else p.rest[rows]
    if p.ids is None:
        assert p.probs is not None
        return Problem(z, None, p.probs[rows], rest, weight, p.ignore_index)
    real = p.ids[rows] != p.ignore_index if p.probs is None else p.ids[rows] >= 0
    ids = torch.where(real, at.local(p.ids[rows]), -1)
    probs = p.probs[rows] if p.probs is not None else torch.ones_like(ids, dtype=p.accumulator)
    return Problem(z, ids, probs, rest, weight, -1)


def parts(x: Head, p: Problem, r: Request, at: Shard) -> Any:
    """Chunks with merged records; each must be used up before the next."""
    n = p.logits.shape[0]
    size = chunk_rows(x, p, at)
    buffer = gemm.logits_buffer(x.hidden, x.head, min(size, n))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        z = gemm.logits_chunk(x.hidden[rows], x.head, x.bias, buffer)
        yield _merged(p, r, rows, z, at)


def _merged(p: Problem, r: Request, rows: slice, z: Tensor, at: Shard) -> Part:
    local = local_problem(p, rows, z, at)
    stats, index = record(local)
    listed = None
    if local.ids is not None:
        listed = torch.zeros(local.ids.shape, dtype=p.accumulator, device=z.device)
    one = torch.ones((), dtype=p.accumulator, device=z.device)
    sums = Knobs(softcap=r.softcap, smoothing=r.smoothing)
    backend(local).rows(local, sums, stats, index, None, one, listed)
    own_top = stats[Stat.MAX].clone()
    merge(
        stats, index, _top_mass(local, index), local.rest, at.first, (at.width, at.total), at.group
    )
    if listed is not None:
        assert local.ids is not None
        # Every listed class lives in one shard: the sum over ranks is its logit.
        here = local.ids >= 0
        listed = torch.where(here, listed + own_top.unsqueeze(1), 0.0)
        dist.all_reduce(listed, group=at.group)
        listed -= stats[Stat.MAX].unsqueeze(1)
    return Part(rows, local, stats, index, listed)


def _top_mass(p: Problem, index: Tensor) -> Tensor:
    """(n,) weak mass of the shard's top weak class, -inf where it has none of the listed ones."""
    if p.ids is None:
        assert p.probs is not None
        return p.probs.gather(1, index[Index.WEAK].unsqueeze(1))[:, 0].to(torch.float64)
    assert p.probs is not None
    return torch.where(p.ids >= 0, p.probs, -torch.inf).amax(1).to(torch.float64)


def finish_rows(part: Part, r: Request, threshold: Tensor | None, aux: Tensor) -> None:
    """Self-target, factor and loss of merged rows; gates are open without a threshold."""
    p, stats, index = part.problem, part.stats, part.classes
    logs = stats[Stat.LOGS]
    index[Index.SELF] = index[Index.ARGMAX]
    coefficient = torch.zeros_like(aux) if r.rule == "none" else aux
    if threshold is not None:
        coefficient = torch.where(stats[Stat.SCORE] >= threshold, coefficient, 0.0)
    stats[Stat.COEF] = coefficient
    factor = torch.ones_like(logs)
    if r.gamma:
        factor = factor * (-torch.expm1(stats[Stat.CHOSEN] - logs)).clamp_min(0) ** r.gamma
    if r.cap != float("inf"):
        factor = factor * ~((-logs).exp() >= r.cap)
    stats[Stat.FACTOR] = torch.where(p.keep(), factor, 0.0)
    set_loss(part, r)


def set_loss(part: Part, r: Request) -> None:
    """LOSS from the other rows of the record; the self class is the argmax, at z - M = 0."""
    stats, rest = part.stats, part.problem.rest
    logs, mass, a = stats[Stat.LOGS], stats[Stat.MASS], stats[Stat.COEF]
    listed = mass if rest is None else mass - rest
    weak = listed * logs - stats[Stat.LINEAR]
    if rest is not None:
        weak = weak - torch.where(rest != 0, rest * stats[Stat.TAIL], 0.0)
    if r.smoothing:
        even = r.smoothing * mass
        uniform = torch.where(even != 0, even * (logs - stats[Stat.MEAN]), 0.0)
        weak = (1 - r.smoothing) * weak + uniform
    row = unless_own(weak, mass, a) + torch.where(a != 0, a * logs, 0.0)
    if r.z_loss:
        row = row + r.z_loss * (stats[Stat.MAX] + logs).square()
    factor = stats[Stat.FACTOR]
    stats[Stat.LOSS] = torch.where(factor != 0, row * factor, 0.0)


def write_gradient(part: Part, r: Request, row_scale: Tensor, at: Shard) -> Tensor:
    """The shard's dlogits over its logits."""
    p, stats, index = part.problem, part.stats, part.classes.clone()
    index[Index.ARGMAX], index[Index.SELF] = (
        at.local(index[Index.ARGMAX]),
        at.local(index[Index.SELF]),
    )
    knobs = Knobs(softcap=r.softcap, z_loss=r.z_loss)
    z = p.logits
    if not r.smoothing:
        backend(p).gradient(p, knobs, stats, index, row_scale, z)
        return z
    # The kernels would spread the smoothed mass over this shard's classes alone: the targets are
    # scaled here, and the uniform part, the same for every class, is taken off afterwards.
    hard = 1 - r.smoothing
    assert p.probs is not None
    p = p._replace(probs=p.probs * hard, rest=None if p.rest is None else p.rest * hard)
    slope = None
    if r.softcap:
        slope = soft_cap_slope(z.to(stats.dtype), r.softcap)
    backend(p).gradient(p, knobs, stats, index, row_scale, z)
    flat = (1 - stats[Stat.COEF]) * r.smoothing * stats[Stat.MASS] / at.total
    flat = torch.where(stats[Stat.FACTOR] != 0, flat * stats[Stat.FACTOR] * row_scale, 0.0)
    z -= (flat.unsqueeze(1) if slope is None else flat.unsqueeze(1) * slope).to(z.dtype)
    return z


def solve_vocab(
    x: Head, p: Problem, r: Request, wanted: Wanted, mean: bool, at: Shard
) -> LinearSolution:
    """Loss, record and gradients; every rank returns the same loss, record and dhidden."""
    check_labels(p)
    stats, index = record(p)
    late = r.rule == "median" and r.threshold is None
    if late and not fixes_by_rank_one(p, r, wanted):
        for part in parts(x, p, r, at):
            stats[:, part.rows] = part.stats
        at_half = quantile_op.masked_quantile(stats[Stat.SCORE], 0.5, p.keep())
        r, late = dataclasses.replace(r, threshold=at_half), False
    total = normaliser(p)
    scale = torch.where(total > 0, 1 / total, 0.0) if mean else torch.ones_like(total)
    aux = torch.as_tensor(r.aux, dtype=p.accumulator, device=total.device)
    listed = None
    if p.ids is not None:
        listed = torch.empty(p.ids.shape, dtype=p.accumulator, device=total.device)
    grads = Gradients(x, wanted, chunk_rows(x, p, at) < p.logits.shape[0])
    for part in parts(x, p, r, at):
        finish_rows(part, r, r.threshold, aux)
        if listed is not None and part.listed is not None:
            listed[part.rows] = part.listed
        stats[:, part.rows], index[:, part.rows] = part.stats, part.classes
        if wanted.any:
            assert part.problem.weight is not None
            grads.add(write_gradient(part, r, scale * part.problem.weight, at), part.rows)
    threshold = r.threshold
    if late:
        threshold = quantile_op.masked_quantile(stats[Stat.SCORE], 0.5, p.keep())
        assert listed is not None
        _close_gates(x, p, r, (stats, index, listed), threshold, scale, grads, at)
    loss = total_loss(p, stats[Stat.LOSS], total if mean else None)
    hidden, head, bias = grads.result()
    if hidden is not None:
        dist.all_reduce(hidden, group=at.group)
    return LinearSolution(stats, index, loss, total, threshold, hidden, head, bias)


def gradients_from_rows(
    x: Head, p: Problem, r: Request, s: LinearSolution, upstream: Tensor, wanted: Wanted, at: Shard
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for an upstream (N,) of row losses, from the record and logits made again."""
    size = chunk_rows(x, p, at)
    n = p.logits.shape[0]
    grads = Gradients(x, wanted, size < n)
    buffer = gemm.logits_buffer(x.hidden, x.head, min(size, n))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        z = gemm.logits_chunk(x.hidden[rows], x.head, x.bias, buffer)
        local = local_problem(p, rows, z, at)
        some, few = s.stats[:, rows].contiguous(), s.index[:, rows].contiguous()
        part = Part(rows, local, some, few, None)
        grads.add(write_gradient(part, r, upstream[rows].contiguous(), at), rows)
    hidden, head, bias = grads.result()
    if hidden is not None:
        dist.all_reduce(hidden, group=at.group)
    return hidden, head, bias


def _close_gates(
    x: Head,
    p: Problem,
    r: Request,
    rows: tuple[Tensor, Tensor, Tensor],
    threshold: Tensor,
    scale: Tensor,
    grads: Gradients,
    at: Shard,
) -> None:
    """As in ``fused_linear/chunks.py``; every rank corrects the entries of its own classes."""
    stats, index, listed = rows
    closed = ~(stats[Stat.SCORE] >= threshold) & (stats[Stat.COEF] != 0)
    factor = stats[Stat.FACTOR]
    if grads.wanted.any:
        weight = scale if p.weight is None else scale * p.weight
        pull = torch.where(closed & (factor != 0), stats[Stat.COEF] * factor * weight, 0.0)
        whole = local_problem(p, slice(None), p.logits, at)
        assert whole.ids is not None and whole.probs is not None
        top = stats[Stat.MAX].unsqueeze(1)
        own = at.local(index[Index.SELF]).unsqueeze(1)
        q = torch.where(whole.ids >= 0, whole.probs, 0.0) * cap_slope(listed + top, r.softcap)
        values = torch.cat([(own >= 0) * cap_slope(top, r.softcap), -q], 1) * pull.unsqueeze(1)
        classes = torch.cat([own, whole.ids], 1).clamp_min(0)
        every = torch.arange(pull.shape[0], device=pull.device)
        add_entries(x, classes, values, every, grads)
    stats[Stat.COEF] = torch.where(closed, 0.0, stats[Stat.COEF])
    set_loss(Part(slice(None), p, stats, index, None), r)
