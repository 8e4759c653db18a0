"""The chunks of a fused head: their logits, their targets, and the sums of their gradients.

Each chunk of logits is computed, passed over, fed to two GEMMs, freed; ``solve.py`` is that loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.ops.checks import on_host
from w2s_fast.ops.chunking import default_memory_mib, rows_per_chunk
from w2s_fast.ops.dispatch import backend
from w2s_fast.ops.fused_linear import gemm
from w2s_fast.ops.fused_linear.head_gradient import HeadGradient
from w2s_fast.ops.fused_linear.main_grad import MainGrad
from w2s_fast.ops.fused_linear.teacher import heads as teacher_heads
from w2s_fast.ops.fused_linear.teacher.heads import Target, Teacher
from w2s_fast.ops.fused_linear.teacher.rows import DivergenceRows
from w2s_fast.ops.loss_call import RowCall, new_record
from w2s_fast.ops.targets import LossInputs


class HeadInputs(NamedTuple):
    """Hidden states (N, D), head (V, D), bias (V,) or None, and the budget of a chunk of logits.

    The logits are alpha (hidden head^T + bias); the caller that sets alpha scales the gradients by
    it. With ``main_grad`` the head's gradient is added to that buffer. A teacher's target is made
    with each chunk: the loss inputs then have no targets. A budget of None is chosen by device when
    the chunks are made.
    """

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    memory_mib: float | None
    fp32_head_gradient: bool = True
    alpha: float = 1.0
    main_grad: MainGrad | None = None
    teacher: Teacher | None = None

    def chunk_mib(self, itemsize: int) -> float:
        """Return the budget of a chunk whose widest array has ``itemsize`` bytes an entry."""
        if self.memory_mib is not None:
            return self.memory_mib
        return default_memory_mib(self.head.shape[0], itemsize, self.hidden.device)

    @property
    def memory_argument(self) -> float | None:
        """The budget as an argument of a registered operator."""
        return None if self.memory_mib is None else float(self.memory_mib)


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
    return rows_per_chunk(n, v, itemsize, x.chunk_mib(itemsize))


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


def shape_only(n: int, v: int, like: Tensor) -> Tensor:
    """Return an (N, V) view of one number, the shape of logits that do not exist."""
    return like.new_empty((1, 1)).expand(n, v)


class Gradients:
    """The gradients of a head, summed over ``parts``: chunks, and corrections after them.

    Args:
        used: (N,) bool, False in rows whose dlogits are 0; None for all. Their hidden states are
            not multiplied, because 0 times NaN is NaN.
    """

    def __init__(
        self, x: HeadInputs, needs: NeedsGrad, parts: int, used: Tensor | None = None
    ) -> None:
        self.x, self.needs = x, needs
        all_used = used is None or not needs.head or (on_host(used) and bool(used.all()))
        self._used = None if all_used else used
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
            self.head.add(dlogits, self.hidden_of(rows))

    def hidden_of(self, rows: slice | Tensor) -> Tensor:
        """Return the hidden states of some rows, 0 where they are not used."""
        hidden = self.x.hidden[rows]
        if self._used is None:
            return hidden
        return torch.where(self._used[rows].unsqueeze(1), hidden, 0.0)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of hidden, head and bias."""
        if self.head is None:
            return self.hidden, None, None
        return self.hidden, *self.head.result()
