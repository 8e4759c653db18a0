"""One fused-head loss call: chunks of logits come, are swept, feed two GEMMs, and are gone.

A chunk of rows goes through the same row kernels as dense logits: one sweep turns it into its own
gradient, in place. What remains special is a threshold over the whole batch, which is known only
when every chunk is gone. Two ways, both exact:

- hard labels, or top-k labels of mass 1 without a residual: the gate moves a few entries of a row
  and nothing else. All gates are taken as open; the rows that turn out closed are corrected by
  rank-1 terms a g (e_self - q): K + 1 rows of the head into dhidden, K + 1 times hidden into dhead.
  No logits, no second GEMM.
- every other target: the gate reaches all classes. The chunks are swept for their scores first,
  2 N V D operations more.

A batch that fits into one chunk needs neither: it is the dense call between its GEMMs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import (
    Request,
    backend,
    batch_threshold,
    check_request,
    knobs_for,
    normaliser,
    record,
    solve,
    total_loss,
)
from w2s_fast.ops.fused_linear import gemm
from w2s_fast.ops.fused_linear.head_gradient import HeadGradient
from w2s_fast.ops.results import LinearSolution
from w2s_fast.ops.row_stats import Index, Knobs, Stat
from w2s_fast.ops.targets import Problem, check_labels

# A weak mass this many roundings from 1 moves a gradient by no more than a sum over the classes is
# off anyway.
_MASS_ROUNDINGS = 8


class Head(NamedTuple):
    """What makes logits: hidden (N, D), head (V, D), bias (V,) or None, and the chunk budget.

    The logits are alpha (hidden head^T + bias); whoever sets alpha scales the gradients by it.
    """

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    memory_mib: float
    fp32_head_gradient: bool = True
    alpha: float = 1.0


class Wanted(NamedTuple):
    """Which gradients to make; a frozen part skips its GEMM."""

    hidden: bool = False
    head: bool = False
    bias: bool = False

    @property
    def any(self) -> bool:
        """Whether a chunk has to become its gradient at all."""
        return self.hidden or self.head or self.bias


class Chunk(NamedTuple):
    """Rows ``rows`` of the batch with their logits."""

    rows: slice
    problem: Problem
    hidden: Tensor


def fits(x: Head, p: Problem) -> bool:
    """Whether one chunk holds every row."""
    n, v = p.logits.shape
    return gemm.rows_per_chunk(n, v, x.hidden.dtype.itemsize, x.memory_mib) >= n


def chunks(x: Head, p: Problem) -> Iterator[Chunk]:
    """Logits of all rows, a chunk at a time, in one buffer: each must be used up before the next.

    ``p`` is the whole problem; its logits are only a shape.
    """
    n, v = p.logits.shape
    size = gemm.rows_per_chunk(n, v, x.hidden.dtype.itemsize, x.memory_mib)
    buffer = gemm.logits_buffer(x.hidden, x.head, min(size, n))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        hidden = x.hidden[rows]
        z = gemm.logits_chunk(hidden, x.head, x.bias, buffer, x.alpha)
        yield Chunk(rows, slice_rows(p, rows, z), hidden)


def whole(x: Head, p: Problem, logits: Tensor) -> Chunk:
    """All rows as one chunk, of logits that are at hand."""
    rows = slice(0, p.logits.shape[0])
    return Chunk(rows, slice_rows(p, rows, logits), x.hidden)


def slice_rows(p: Problem, rows: slice, logits: Tensor) -> Problem:
    """The problem of some rows whose logits are at hand."""
    ids, probs, rest, weight = (
        None if t is None else t[rows] for t in (p.ids, p.probs, p.rest, p.weight)
    )
    return Problem(logits, ids, probs, rest, weight, p.ignore_index)


def shape_only(n: int, v: int, like: Tensor) -> Tensor:
    """(N, V) that holds one number: what a Problem without logits carries."""
    return like.new_empty((1, 1)).expand(n, v)


class Gradients:
    """Where the chunks' gradients go; ``chunked`` says that there may be several."""

    def __init__(self, x: Head, wanted: Wanted, chunked: bool) -> None:
        self.x, self.wanted = x, wanted
        self.hidden = torch.empty_like(x.hidden) if wanted.hidden else None
        self.head: HeadGradient | None = None
        if wanted.head or wanted.bias:
            wide = x.fp32_head_gradient and chunked
            self.head = HeadGradient(x.head, wide, wanted.bias, with_head=wanted.head)

    def add(self, dlogits: Tensor, rows: slice) -> None:
        """Take a chunk's gradient, which may be overwritten afterwards."""
        if self.hidden is not None:
            gemm.hidden_gradient(dlogits, self.x.head, self.hidden[rows])
        if self.head is not None:
            self.head.add(dlogits, self.x.hidden[rows])

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden, head and bias."""
        if self.head is None:
            return self.hidden, None, None
        return self.hidden, *self.head.result()


def solve_linear(
    x: Head, p: Problem, r: Request, wanted: Wanted, mean: bool, keep_logits: bool = False
) -> LinearSolution:
    """Loss, record and gradients of one call; ``p`` carries the targets and a shape.

    ``keep_logits`` leaves them in the solution where one chunk holds them all and no gradient is
    wanted yet.
    """
    check_request(r, p)
    check_labels(p)  # before a chunk counts rows of its own
    if fits(x, p):
        s, z = _solve_at_once(x, p, r, wanted, mean)
        return dataclasses.replace(s, logits=z) if keep_logits else s
    late = r.rule in ("prior", "median") and r.threshold is None
    if late and not fixes_by_rank_one(p, r, wanted):
        r = dataclasses.replace(r, threshold=probe(x, p, r))
        late = False
    total = normaliser(p)
    scale = torch.where(total > 0, 1 / total, 0.0) if mean else torch.ones_like(total)
    stats, index = record(p)
    listed = None
    if late and p.ids is not None:
        listed = torch.empty(p.ids.shape, dtype=p.accumulator, device=p.ids.device)
    grads = Gradients(x, wanted, chunked=True)
    knobs = knobs_for(p, r, r.threshold)
    for chunk in chunks(x, p):
        z, at = chunk.problem.logits, chunk.rows
        some, few = record(chunk.problem)
        keep = None if listed is None else torch.empty_like(listed[at])
        serve = backend(chunk.problem)
        serve.rows(chunk.problem, knobs, some, few, z if wanted.any else None, scale, keep)
        stats[:, at], index[:, at] = some, few
        if listed is not None and keep is not None:
            listed[at] = keep
        if wanted.any:
            grads.add(z, at)
    threshold = r.threshold
    if late:
        threshold = batch_threshold(p, r.rule, stats)
        assert listed is not None
        _close_gates(x, p, r, stats, index, listed, threshold, scale, grads)
    loss = total_loss(p, stats[Stat.LOSS], total if mean else None)
    return LinearSolution(stats, index, loss, total, threshold, *grads.result())


def _solve_at_once(
    x: Head, p: Problem, r: Request, wanted: Wanted, mean: bool
) -> tuple[LinearSolution, Tensor]:
    n = p.logits.shape[0]
    buffer = gemm.logits_buffer(x.hidden, x.head, n)
    z = gemm.logits_chunk(x.hidden, x.head, x.bias, buffer, x.alpha)
    chunk = whole(x, p, z)
    s = solve(chunk.problem, dataclasses.replace(r, record=True), z if wanted.any else None, mean)
    assert s.stats is not None and s.index is not None
    grads = Gradients(x, wanted, chunked=False)
    if wanted.any and n:
        grads.add(z, chunk.rows)
    found = grads.result()
    return LinearSolution(s.stats, s.index, s.total, s.normaliser, s.threshold, *found), z


def probe(x: Head, p: Problem, r: Request) -> Tensor:
    """The batch threshold from the scores alone."""
    stats, index = record(p)
    for chunk in chunks(x, p):
        some, few = record(chunk.problem)
        one = torch.ones((), dtype=some.dtype, device=some.device)
        backend(chunk.problem).rows(chunk.problem, Knobs(softcap=r.softcap), some, few, None, one)
        stats[:, chunk.rows], index[:, chunk.rows] = some, few
    return batch_threshold(p, r.rule, stats)


def fixes_by_rank_one(p: Problem, r: Request, wanted: Wanted) -> bool:
    """Whether a gate that closes after its chunk is gone can be corrected."""
    if p.logits.shape[1] == 2 or p.ids is None or p.rest is not None or r.smoothing:
        return False
    if p.probs is None or not wanted.any:
        return True
    if p.probs.device.type != "cpu":
        return False  # looking at the masses would wait for the device
    mass = torch.where(p.ids >= 0, p.probs, 0.0).sum(1)
    room = _MASS_ROUNDINGS * torch.finfo(mass.dtype).eps
    return bool((((mass - 1).abs() <= room) | ~p.keep()).all())


def _close_gates(
    x: Head,
    p: Problem,
    r: Request,
    stats: Tensor,
    index: Tensor,
    listed: Tensor,
    threshold: Tensor,
    scale: Tensor,
    grads: Gradients,
) -> None:
    """Take the self-target out of rows below the threshold: record, loss and gradients."""
    closed = ~(stats[Stat.SCORE] >= threshold) & (stats[Stat.COEF] != 0)
    factor, logs = stats[Stat.FACTOR], stats[Stat.LOGS]
    if grads.wanted.any:
        weight = scale if p.weight is None else scale * p.weight
        pull = torch.where(closed & (factor != 0), stats[Stat.COEF] * factor * weight, 0.0)
        _add_rank_one(x, p, r, stats, index, listed, pull, grads)
    weak = stats[Stat.MASS] * logs - stats[Stat.LINEAR]
    if r.z_loss:
        weak = weak + r.z_loss * (stats[Stat.MAX] + logs).square()
    loss = torch.where(factor != 0, factor * weak, 0.0)
    stats[Stat.LOSS] = torch.where(closed, loss, stats[Stat.LOSS])
    stats[Stat.COEF] = torch.where(closed, 0.0, stats[Stat.COEF])


def _add_rank_one(
    x: Head,
    p: Problem,
    r: Request,
    stats: Tensor,
    index: Tensor,
    listed: Tensor,
    pull: Tensor,
    grads: Gradients,
) -> None:
    """dlogits += pull (e_self - q), for pull (N,), through both GEMMs without dlogits."""
    assert p.ids is not None
    real = p.ids != p.ignore_index if p.probs is None else p.ids >= 0
    q = real.to(pull.dtype) if p.probs is None else torch.where(real, p.probs, 0.0)
    top = stats[Stat.MAX].unsqueeze(1)
    own = cap_slope(top, r.softcap)
    q = q * cap_slope(torch.where(real, listed + top, 0.0), r.softcap)
    classes = torch.cat([index[Index.SELF].unsqueeze(1), torch.where(real, p.ids, 0)], 1)
    values = torch.cat([own, -q], 1) * pull.unsqueeze(1)
    rows = torch.arange(pull.shape[0], device=pull.device)
    if pull.device.type == "cpu":
        rows = pull.nonzero().squeeze(1)
        classes, values = classes[rows], values[rows]
    add_entries(x, classes, values, rows, grads)


def add_entries(x: Head, classes: Tensor, values: Tensor, rows: Tensor, grads: Gradients) -> None:
    """dlogits[rows_m, classes_mk] += values_mk for (M, K) entries of M rows of the batch."""
    if grads.hidden is not None:
        add = torch.zeros(
            (rows.shape[0], x.hidden.shape[1]), dtype=values.dtype, device=rows.device
        )
        for k in range(classes.shape[1]):  # one (M, D) gather at a time, never (M, K, D)
            add.addcmul_(x.head[classes[:, k]].to(values.dtype), values[:, k : k + 1])
        # Each row of the batch comes once: no sum to wait for, and one rounding.
        grads.hidden[rows] = (grads.hidden[rows].to(add.dtype) + add).to(grads.hidden.dtype)
    if grads.head is not None:
        grads.head.add_entries(classes, values, x.hidden[rows])


def cap_slope(z: Tensor, softcap: float) -> Tensor:
    """dz/du of a soft-capped logit z; ones without a cap."""
    return (1 - z / softcap) * (1 + z / softcap) if softcap else torch.ones_like(z)
