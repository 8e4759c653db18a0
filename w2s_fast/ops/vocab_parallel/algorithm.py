"""One vocabulary-parallel call: the fused head with V / R rows of it on every rank.

All ranks hold the same hidden states and targets and iterate over the same chunks. A pass over a
chunk of the shard's logits fills its record, the records are merged over ranks, and the shard's
part of the gradient is written over the chunk from the merged record: no logits are sent. dhidden
is a sum over shards; the head's gradient stays on the rank of the shard. Thresholds need no
message: every rank has every score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from w2s_fast.ops.chunking import default_memory_mib, rows_per_chunk
from w2s_fast.ops.cross_entropy.algorithm import (
    gradient_scale,
    normaliser,
    total_loss,
)
from w2s_fast.ops.cross_entropy.ref import (
    set_factor,
    set_loss,
    set_self_target,
    soft_cap_slope,
)
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.fused_linear import gemm
from w2s_fast.ops.fused_linear.chunks import (
    Chunk,
    Gradients,
    HeadInputs,
    NeedsGrad,
)
from w2s_fast.ops.fused_linear.late_gate import (
    add_entries,
    cap_slope,
    closed_rows,
    fixes_afterwards,
)
from w2s_fast.ops.fused_linear.teacher.heads import Target, Teacher
from w2s_fast.ops.loss_call import Index, LossResult, LossSpec, RowCall, Stat, new_record
from w2s_fast.ops.quantile import api as quantile_op
from w2s_fast.ops.targets import LossInputs, check_labels
from w2s_fast.ops.vocab_parallel.merge import merge
from w2s_fast.ops.vocab_parallel.shard import Shard


def chunk_rows(x: HeadInputs, p: LossInputs, shard: Shard) -> int:
    """Return the rows of a chunk, from the mean width: ranks must agree without a message."""
    width = -(-shard.total // dist.get_world_size(shard.group))
    n, itemsize = p.logits.shape[0], x.hidden.dtype.itemsize
    if x.teacher is not None:
        itemsize = max(itemsize, p.accumulator.itemsize)
    memory_mib = x.memory_mib
    if memory_mib is None:
        memory_mib = default_memory_mib(width, itemsize, x.hidden.device, same_on_all_ranks=True)
    return rows_per_chunk(n, width, itemsize, memory_mib)


def _chunk_count(x: HeadInputs, p: LossInputs, shard: Shard) -> int:
    return max(1, -(-p.logits.shape[0] // chunk_rows(x, p, shard)))


def local_inputs(
    p: LossInputs, rows: slice, z: Tensor, shard: Shard, probs: Tensor | None = None
) -> LossInputs:
    """Return the targets of this shard's classes; hard labels become top-k labels with K = 1.

    ``probs``: those of some rows that a teacher made.
    """
    keep = p.counted()[rows]
    weight = keep.to(p.accumulator) if p.weight is None else p.weight[rows] * keep
    rest = None if p.rest is None else p.rest[rows]
    if p.ids is None:
        if probs is None:
            assert p.probs is not None
            probs = p.probs[rows]
        return LossInputs(z, None, probs, rest, weight, p.ignore_index)
    real = p.ids[rows] != p.ignore_index if p.probs is None else p.ids[rows] >= 0
    ids = torch.where(real, shard.local(p.ids[rows]), -1)
    probs = p.probs[rows] if p.probs is not None else torch.ones_like(ids, dtype=p.accumulator)
    return LossInputs(z, ids, probs, rest, weight, -1)


def local_chunks(x: HeadInputs, p: LossInputs, shard: Shard) -> Iterator[Chunk]:
    """Yield the logits of this shard's classes, a chunk at a time, in one buffer."""
    n, size = p.logits.shape[0], chunk_rows(x, p, shard)
    buffer = gemm.logits_buffer(x.hidden, x.head, min(size, n))
    target = None if x.teacher is None else _target(x.teacher, min(size, n))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        z = gemm.logits_chunk(x.hidden[rows], x.head, x.bias, buffer)
        probs = None if target is None else sharded_softmax(target.chunk(rows), shard)
        yield Chunk(rows, local_inputs(p, rows, z, shard, probs))


def _target(teacher: Teacher, rows: int) -> Target:
    return Target(teacher, rows, teacher.scales.dtype, as_logits=True)


def sharded_softmax(t: Tensor, shard: Shard) -> Tensor:
    """Return the softmax of rows over the classes of all ranks, in place of (n, V_r) logits."""
    top = t.amax(1, keepdim=True)
    dist.all_reduce(top, dist.ReduceOp.MAX, group=shard.group)
    total = t.sub_(top).exp_().sum(1, keepdim=True)
    dist.all_reduce(total, group=shard.group)
    return t.div_(total)


def merged_call(p: LossInputs, spec: LossSpec, shard: Shard) -> RowCall:
    """Run the pass over a shard's logits and merge its record over ranks."""
    read = LossSpec(softcap=spec.softcap, smoothing=spec.smoothing)
    call = RowCall(p, read, *new_record(p))
    if p.ids is not None:
        call.topk_diffs = torch.zeros(p.ids.shape, dtype=p.accumulator, device=p.logits.device)
    backend("cross_entropy", p.logits).rows(call)
    call.spec = spec
    stats, index = call.stats, call.index
    own_top = stats[Stat.MAX].clone()
    widths = (shard.width, shard.total)
    merge(stats, index, _top_mass(p, index), p.rest, shard.first, widths, shard.group)
    if p.ids is not None and call.topk_diffs is not None:
        # Every top-k class lives in one shard: the sum over ranks is its logit.
        logits = torch.where(p.ids >= 0, call.topk_diffs + own_top.unsqueeze(1), 0.0)
        dist.all_reduce(logits, group=shard.group)
        call.topk_diffs = logits - stats[Stat.MAX].unsqueeze(1)
    return call


def _top_mass(p: LossInputs, index: Tensor) -> Tensor:
    """Return (n,) weak mass of the shard's top weak class, -inf where it has none of the top k."""
    if p.ids is None:
        assert p.probs is not None
        return p.probs.gather(1, index[Index.WEAK].unsqueeze(1))[:, 0].to(torch.float64)
    assert p.probs is not None
    return torch.where(p.ids >= 0, p.probs, -torch.inf).amax(1).to(torch.float64)


def write_gradient(call: RowCall, row_scale: Tensor, shard: Shard) -> Tensor:
    """Write the shard's dlogits over its logits."""
    p, spec, stats, index = call.inputs, call.spec, call.stats, call.index
    index = index.clone()
    index[Index.ARGMAX] = shard.local(index[Index.ARGMAX])
    index[Index.SELF] = shard.local(index[Index.SELF])
    z, smoothing = p.logits, spec.smoothing
    slope = None
    if smoothing:
        # The kernels would spread the smoothed mass over this shard's classes alone: the targets
        # are scaled here, and the uniform part, the same for every class, is subtracted afterwards.
        hard = 1 - smoothing
        assert p.probs is not None
        p = p._replace(probs=p.probs * hard, rest=None if p.rest is None else p.rest * hard)
        if spec.softcap:
            slope = soft_cap_slope(z.to(stats.dtype), spec.softcap)
    terms = LossSpec(softcap=spec.softcap, z_loss=spec.z_loss)
    backend("cross_entropy", p.logits).gradient(
        RowCall(p, terms, stats, index, grad=z, row_scale=row_scale)
    )
    if smoothing:
        flat = (1 - stats[Stat.COEF]) * smoothing * stats[Stat.MASS] / shard.total
        flat = torch.where(stats[Stat.FACTOR] != 0, flat * stats[Stat.FACTOR] * row_scale, 0.0)
        z -= (flat.unsqueeze(1) if slope is None else flat.unsqueeze(1) * slope).to(z.dtype)
    return z


def solve_vocab(
    x: HeadInputs, p: LossInputs, spec: LossSpec, needs: NeedsGrad, mean: bool, shard: Shard
) -> LossResult:
    """Compute loss, record and gradients; every rank returns the same loss, record and dhidden."""
    check_labels(p)
    stats, index = new_record(p)
    late = spec.rule == "median" and spec.threshold is None
    if late and not fixes_afterwards(p, spec, needs):
        for rows, inputs in local_chunks(*_without_teacher(x, p), shard):
            stats[:, rows] = merged_call(inputs, spec, shard).stats
        at_half = quantile_op.masked_quantile(stats[Stat.SCORE], 0.5, p.counted())
        spec, late = dataclasses.replace(spec, threshold=at_half), False
    total = normaliser(p)
    rule, scale = spec.row_rule(shard.total), gradient_scale(total, mean)
    whole = RowCall(p, spec, stats, index, rule, spec.threshold_tensor(p), scale=scale)
    if p.ids is not None:
        whole.topk_diffs = torch.empty(p.ids.shape, dtype=p.accumulator, device=total.device)
    parts = _chunk_count(x, p, shard) + (p.width + 1 if late else 0)
    grads = Gradients(x, needs, parts, p.some_counted() if needs.head else None)
    for rows, inputs in local_chunks(x, p, shard):
        call = merged_call(inputs, spec, shard)
        call.rule, call.threshold = rule, whole.threshold
        set_self_target(call)
        set_factor(call)
        set_loss(call, 0.0)  # the self class is the argmax, at z - M = 0
        if whole.topk_diffs is not None and call.topk_diffs is not None:
            whole.topk_diffs[rows] = call.topk_diffs
        stats[:, rows], index[:, rows] = call.stats, call.index
        if needs.any:
            assert inputs.weight is not None
            grads.add(write_gradient(call, scale * inputs.weight, shard), rows)
    if late:
        whole.threshold = quantile_op.masked_quantile(stats[Stat.SCORE], 0.5, p.counted())
        _close_gates(x, whole, grads, shard)
    loss = total_loss(p, stats[Stat.LOSS], total if mean else None)
    return LossResult(stats, index, loss, total, whole.threshold, _summed(grads, shard))


def _without_teacher(x: HeadInputs, p: LossInputs) -> tuple[HeadInputs, LossInputs]:
    """Return inputs for scores, which are the student's: any label will do."""
    if x.teacher is None:
        return x, p
    label = torch.zeros((x.hidden.shape[0], 1), dtype=torch.int64, device=x.hidden.device)
    return x._replace(teacher=None), p._replace(ids=label, ignore_index=-1)


def gradients_from_rows(
    x: HeadInputs,
    p: LossInputs,
    spec: LossSpec,
    result: LossResult,
    upstream: Tensor,
    needs: NeedsGrad,
    shard: Shard,
) -> tuple[Tensor | None, ...]:
    """Compute gradients for an upstream (N,) of row losses, from the record and new logits."""
    used = upstream != 0
    if (counted := p.some_counted()) is not None:
        used = used & counted
    grads = Gradients(x, needs, _chunk_count(x, p, shard), used if needs.head else None)
    for rows, inputs in local_chunks(x, p, shard):
        some, few = result.stats[:, rows].contiguous(), result.index[:, rows].contiguous()
        call = RowCall(inputs, spec, some, few)
        grads.add(write_gradient(call, upstream[rows].contiguous(), shard), rows)
    return _summed(grads, shard)


def _summed(grads: Gradients, shard: Shard) -> tuple[Tensor | None, ...]:
    """Return the gradients, that of the hidden states summed over shards."""
    hidden, head, bias = grads.result()
    if hidden is not None:
        dist.all_reduce(hidden, group=shard.group)
    return hidden, head, bias


def _close_gates(x: HeadInputs, call: RowCall, grads: Gradients, shard: Shard) -> None:
    """Close gates as ``late_gate.close_gates``; each rank corrects entries of its own classes."""
    p, softcap, stats, index = call.inputs, call.spec.softcap, call.stats, call.index
    closed, pull = closed_rows(call)
    if grads.needs.any:
        local = local_inputs(p, slice(None), p.logits, shard)
        assert local.ids is not None and local.probs is not None and call.topk_diffs is not None
        top = stats[Stat.MAX].unsqueeze(1)
        own = shard.local(index[Index.SELF]).unsqueeze(1)
        q = torch.where(local.ids >= 0, local.probs, 0.0)
        q = q * cap_slope(call.topk_diffs + top, softcap)
        values = torch.cat([(own >= 0) * cap_slope(top, softcap), -q], 1) * pull.unsqueeze(1)
        classes = torch.cat([own, local.ids], 1).clamp_min(0)
        every = torch.arange(pull.shape[0], device=pull.device)
        add_entries(x, classes, values, every, grads)
    stats[Stat.COEF] = torch.where(closed, 0.0, stats[Stat.COEF])
    set_loss(call, 0.0)
