"""One fused-head loss call: each chunk of logits is computed, passed over, fed to two GEMMs, freed.

A chunk of rows goes through the same row kernels as dense logits: one pass turns it into its own
gradient, in place. A threshold over the whole batch is the exception: it is known only after the
last chunk. Two ways, both exact:

- hard labels, or top-k labels of mass 1 without a residual: the gate moves a few entries of a row
  and nothing else. All gates are taken as open; the rows that turn out closed are corrected by
  rank-1 terms a g (e_self - q): K + 1 rows of the head into dhidden, K + 1 times hidden into dhead.
  No logits, no second GEMM.
- every other target: the gate reaches all classes. A first pass over the chunks computes the
  scores, 2 N V D operations more.

A batch that fits into one chunk needs neither: it is a dense call between its GEMMs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.ops.chunking import rows_per_chunk
from w2s_fast.ops.cross_entropy.algorithm import (
    BATCH_RULES,
    batch_threshold,
    check_spec,
    gradient_scale,
    normaliser,
    solve,
    total_loss,
)
from w2s_fast.ops.cross_entropy.ref import set_loss
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.fused_linear import gemm
from w2s_fast.ops.fused_linear.head_gradient import HeadGradient
from w2s_fast.ops.fused_linear.main_grad import MainGrad
from w2s_fast.ops.fused_linear.teacher import heads as teacher_heads
from w2s_fast.ops.fused_linear.teacher.heads import Slopes, Target, Teacher
from w2s_fast.ops.fused_linear.teacher.rows import DivergenceRows
from w2s_fast.ops.loss_call import Index, LossResult, LossSpec, RowCall, Stat, new_record
from w2s_fast.ops.targets import LossInputs, check_labels

# A weak mass within this many roundings of 1 counts as 1: the gradient error stays below the
# rounding of a sum over the classes.
_MASS_ROUNDINGS = 8


class HeadInputs(NamedTuple):
    """Hidden states (N, D), head (V, D), bias (V,) or None, and the budget of a chunk of logits.

    The logits are alpha (hidden head^T + bias); the caller that sets alpha scales the gradients by
    it. With ``main_grad`` the head's gradient is added to that buffer. A teacher's target is made
    with each chunk: the loss inputs then have no targets.
    """

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    memory_mib: float
    fp32_head_gradient: bool = True
    alpha: float = 1.0
    main_grad: MainGrad | None = None
    teacher: Teacher | None = None


class NeedsGrad(NamedTuple):
    """Which gradients to make; a frozen part skips its GEMM."""

    hidden: bool = False
    head: bool = False
    bias: bool = False

    @property
    def any(self) -> bool:
        """Whether any gradient is needed."""
        return self.hidden or self.head or self.bias


class Chunk(NamedTuple):
    """Rows ``rows`` of the batch with their logits."""

    rows: slice
    inputs: LossInputs


def chunk_rows(x: HeadInputs, p: LossInputs) -> int:
    """Return the rows of a chunk: its logits, and a teacher's target, each fit into the budget."""
    n, v = p.logits.shape
    itemsize = x.hidden.dtype.itemsize
    if x.teacher is not None:
        target = teacher_heads.target_dtype(x.teacher, x.hidden, _reads_target_logits(x))
        itemsize = max(itemsize, target.itemsize)
    return rows_per_chunk(n, v, itemsize, x.memory_mib)


def chunk_count(x: HeadInputs, p: LossInputs) -> int:
    """Return the number of chunks, at least 1."""
    return max(1, -(-p.logits.shape[0] // chunk_rows(x, p)))


def fits(x: HeadInputs, p: LossInputs) -> bool:
    """Return whether one chunk holds every row."""
    return chunk_count(x, p) == 1


def chunks(x: HeadInputs, p: LossInputs) -> Iterator[Chunk]:
    """Yield the logits of all rows in chunks; they share a buffer, so use one before the next.

    ``p`` has the targets of all rows; its logits are only a shape.
    """
    n, size = p.logits.shape[0], chunk_rows(x, p)
    buffer = gemm.logits_buffer(x.hidden, x.head, min(size, n))
    target = None if x.teacher is None else _target(x, min(size, n))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        z = gemm.logits_chunk(x.hidden[rows], x.head, x.bias, buffer, x.alpha)
        chunk = Chunk(rows, chunk_inputs(x, p, rows, z, target))
        del z  # a name would keep the logits while the next ones are allocated
        yield chunk
        del chunk


def chunk_inputs(
    x: HeadInputs, p: LossInputs, rows: slice, logits: Tensor, target: Target | None = None
) -> LossInputs:
    """Return the inputs of some rows with their logits; ``target``: the buffer of a teacher's."""
    ids, probs, rest, weight = (
        None if t is None else t[rows] for t in (p.ids, p.probs, p.rest, p.weight)
    )
    if x.teacher is not None:
        if target is None:
            target = _target(x, rows.stop - rows.start)
        probs = target.chunk(rows)
    as_logits = target is not None and target.as_logits
    return LossInputs(logits, ids, probs, rest, weight, p.ignore_index, as_logits)


def _target(x: HeadInputs, rows: int) -> Target:
    assert x.teacher is not None
    as_logits = _reads_target_logits(x)
    dtype = teacher_heads.target_dtype(x.teacher, x.hidden, as_logits)
    return Target(x.teacher, rows, dtype, as_logits)


def _reads_target_logits(x: HeadInputs) -> bool:
    """Return whether the row pass of a teacher takes the softmax of its logits itself."""
    assert x.teacher is not None
    kernels = backend("cross_entropy", x.hidden)
    return x.teacher.has_own_pass or (kernels.READS_TARGET_LOGITS and x.head.shape[0] > 2)


def row_kernels(x: HeadInputs) -> Any:
    """Return what passes over the rows of a chunk: a backend, or a teacher's divergence."""
    if x.teacher is not None and x.teacher.has_own_pass:
        return DivergenceRows(x.teacher)
    return backend("cross_entropy", x.hidden)


def shape_only(n: int, v: int, like: Tensor) -> Tensor:
    """Return an (N, V) view of one number, the shape of logits that do not exist."""
    return like.new_empty((1, 1)).expand(n, v)


class Gradients:
    """The gradients of a head, summed over ``parts``: chunks, and corrections after them."""

    def __init__(self, x: HeadInputs, needs: NeedsGrad, parts: int) -> None:
        self.x, self.needs = x, needs
        self.hidden = torch.empty_like(x.hidden) if needs.hidden else None
        self.head: HeadGradient | None = None
        if needs.head or needs.bias:
            into = x.main_grad.buffer if x.main_grad is not None and needs.head else None
            self.head = HeadGradient(
                x.head, x.fp32_head_gradient, parts, needs.bias, with_head=needs.head, into=into
            )

    def add(self, dlogits: Tensor, rows: slice) -> None:
        """Add a chunk's gradient, which may be overwritten afterwards."""
        if self.hidden is not None:
            gemm.hidden_gradient(dlogits, self.x.head, self.hidden[rows])
        if self.head is not None:
            self.head.add(dlogits, self.x.hidden[rows])

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of hidden, head and bias."""
        if self.head is None:
            return self.hidden, None, None
        return self.hidden, *self.head.result()


def solve_linear(
    x: HeadInputs,
    p: LossInputs,
    spec: LossSpec,
    needs: NeedsGrad,
    mean: bool,
    keep_logits: bool = False,
) -> LossResult:
    """Compute loss, record and gradients of one call; ``p`` has the targets and a shape.

    ``keep_logits`` leaves them in the result where one chunk holds them all and gradients come
    later.
    """
    check_spec(spec, p)
    check_labels(p)  # a chunk would number its rows from 0
    own_pass = x.teacher is not None and x.teacher.has_own_pass
    if fits(x, p) and not own_pass:
        return _solve_at_once(x, p, spec, needs, mean, keep_logits)
    late = spec.threshold is None and spec.rule in BATCH_RULES
    if late and not fixes_by_rank_one(p, spec, needs):
        spec = dataclasses.replace(spec, threshold=threshold_from_scores(x, p, spec))
        late = False
    total = normaliser(p)
    call = RowCall(
        p, spec, *new_record(p), spec.row_rule(p.logits.shape[1]), spec.threshold,
        scale=gradient_scale(total, mean),
    )  # fmt: skip
    if late and p.ids is not None:
        call.topk_diffs = torch.empty(p.ids.shape, dtype=p.accumulator, device=p.ids.device)
    grads = Gradients(x, needs, parts=chunk_count(x, p) + (p.width + 1 if late else 0))
    slopes = Slopes(x.teacher)
    kernels = row_kernels(x)
    for chunk in chunks(x, p):
        z = chunk.inputs.logits
        pass_over_rows(call, chunk, z if needs.any else None, kernels)
        if needs.any:
            grads.add(z, chunk.rows)
        slopes.add(chunk.rows, chunk.inputs.probs)
        del chunk, z  # before the next logits are allocated
    if late:
        call.threshold = batch_threshold(p, spec.rule, call.stats)
        _close_gates(x, call, grads)
    loss = total_loss(p, call.stats[Stat.LOSS], total if mean else None)
    return LossResult(
        call.stats, call.index, loss, total, call.threshold, grads.result(), slopes=slopes.values
    )


def pass_over_rows(
    call: RowCall, chunk: Chunk, grad: Tensor | None = None, kernels: Any = None
) -> None:
    """Run phase ``rows`` on a chunk and write its record into that of the whole ``call``."""
    at, stats, index = chunk.rows, call.stats, call.index
    part = dataclasses.replace(call, inputs=chunk.inputs, grad=grad)
    part.stats, part.index = some, few = new_record(chunk.inputs)
    if call.topk_diffs is not None:
        part.topk_diffs = torch.empty_like(call.topk_diffs[at])
    (kernels or backend("cross_entropy", chunk.inputs.logits)).rows(part)
    stats[:, at], index[:, at] = some, few
    if call.topk_diffs is not None and part.topk_diffs is not None:
        call.topk_diffs[at] = part.topk_diffs


def _solve_at_once(
    x: HeadInputs, p: LossInputs, spec: LossSpec, needs: NeedsGrad, mean: bool, keep_logits: bool
) -> LossResult:
    every = slice(0, p.logits.shape[0])
    buffer = gemm.logits_buffer(x.hidden, x.head, every.stop)
    z = gemm.logits_chunk(x.hidden, x.head, x.bias, buffer, x.alpha)
    spec = dataclasses.replace(spec, record=True)
    result = solve(chunk_inputs(x, p, every, z), spec, z if needs.any else None, mean)
    grads = Gradients(x, needs, parts=1)
    if needs.any and every.stop:
        grads.add(z, every)
    return dataclasses.replace(result, grads=grads.result(), logits=z if keep_logits else None)


def threshold_from_scores(x: HeadInputs, p: LossInputs, spec: LossSpec) -> Tensor:
    """Compute the logits for their scores alone and return the batch threshold."""
    scored, student = p, x
    if x.teacher is not None:
        # Scores are the student's: any label will do, and no term of the teacher is computed.
        any_label = torch.zeros((x.hidden.shape[0], 1), dtype=torch.int64, device=x.hidden.device)
        scored, student = p._replace(ids=any_label, ignore_index=-1), x._replace(teacher=None)
        if p.logits.shape[1] == 2:  # the prior of two classes is a mean of the target
            p = p._replace(probs=teacher_heads.probabilities(x.teacher))
    call = RowCall(scored, LossSpec(softcap=spec.softcap, entropy=False), *new_record(p))
    for chunk in chunks(student, scored):
        pass_over_rows(call, chunk)
    return batch_threshold(p, spec.rule, call.stats)


def fixes_by_rank_one(p: LossInputs, spec: LossSpec, needs: NeedsGrad) -> bool:
    """Return whether a gate that closes after its chunk was freed can be corrected."""
    if p.logits.shape[1] == 2 or p.ids is None or p.rest is not None or spec.smoothing:
        return False
    if p.probs is None or not needs.any:
        return True
    if p.probs.device.type != "cpu":
        return False  # reading the masses would wait for the device
    mass = torch.where(p.ids >= 0, p.probs, 0.0).sum(1)
    room = _MASS_ROUNDINGS * torch.finfo(mass.dtype).eps
    return bool((((mass - 1).abs() <= room) | ~p.counted()).all())


def _close_gates(x: HeadInputs, call: RowCall, grads: Gradients) -> None:
    """Remove the self-target from rows below the threshold: record, loss and gradients."""
    stats = call.stats
    closed, pull = closed_rows(call)
    if grads.needs.any:
        _add_rank_one(x, call, pull, grads)
    open_loss = stats[Stat.LOSS].clone()
    stats[Stat.COEF] = torch.where(closed, 0.0, stats[Stat.COEF])
    set_loss(call, 0.0)
    stats[Stat.LOSS] = torch.where(closed, stats[Stat.LOSS], open_loss)


def closed_rows(call: RowCall) -> tuple[Tensor, Tensor]:
    """Return (N,) whether a gate closes, and the factor of its rank-1 correction (0 elsewhere)."""
    stats, weight, threshold = call.stats, call.inputs.weight, call.threshold
    assert call.scale is not None and threshold is not None
    factor = stats[Stat.FACTOR]
    closed = ~(stats[Stat.SCORE] >= threshold) & (stats[Stat.COEF] != 0)
    scale = call.scale if weight is None else call.scale * weight
    pull = torch.where(closed & (factor != 0), stats[Stat.COEF] * factor * scale, 0.0)
    return closed, pull


def _add_rank_one(x: HeadInputs, call: RowCall, pull: Tensor, grads: Gradients) -> None:
    """Add dlogits += pull (e_self - q), for pull (N,), through both GEMMs without dlogits."""
    p, softcap = call.inputs, call.spec.softcap
    assert p.ids is not None
    assert call.topk_diffs is not None
    real = p.ids != p.ignore_index if p.probs is None else p.ids >= 0
    q = real.to(pull.dtype) if p.probs is None else torch.where(real, p.probs, 0.0)
    top = call.stats[Stat.MAX].unsqueeze(1)
    own = cap_slope(top, softcap)
    q = q * cap_slope(torch.where(real, call.topk_diffs + top, 0.0), softcap)
    classes = torch.cat([call.index[Index.SELF].unsqueeze(1), torch.where(real, p.ids, 0)], 1)
    values = torch.cat([own, -q], 1) * pull.unsqueeze(1)
    rows = torch.arange(pull.shape[0], device=pull.device)
    if pull.device.type == "cpu":
        rows = pull.nonzero().squeeze(1)
        classes, values = classes[rows], values[rows]
    add_entries(x, classes, values, rows, grads)


def add_entries(
    x: HeadInputs, classes: Tensor, values: Tensor, rows: Tensor, grads: Gradients
) -> None:
    """Add dlogits[rows_m, classes_mk] += values_mk for (M, K) entries of M rows of the batch."""
    if grads.hidden is not None:
        add = torch.zeros(
            (rows.shape[0], x.hidden.shape[1]), dtype=values.dtype, device=rows.device
        )
        for k in range(classes.shape[1]):  # one (M, D) gather at a time, never (M, K, D)
            add.addcmul_(x.head[classes[:, k]].to(values.dtype), values[:, k : k + 1])
        # Each row of the batch occurs once: one rounding, no accumulation.
        grads.hidden[rows] = (grads.hidden[rows].to(add.dtype) + add).to(grads.hidden.dtype)
    if grads.head is not None:
        grads.head.add_entries(classes, values, x.hidden[rows])


def cap_slope(z: Tensor, softcap: float) -> Tensor:
    """Return dz/du of a soft-capped logit z; ones without a cap."""
    return (1 - z / softcap) * (1 + z / softcap) if softcap else torch.ones_like(z)
