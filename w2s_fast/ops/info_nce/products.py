"""The three products of InfoNCE, into buffers of its caller: similarities and both gradients.

N queries, M documents, D dimensions, 2 N M D operations each. Similarities have 32 bits also where
queries and documents have 16: divided by a temperature of 0.01, those of 16 bits would be off by
0.2 in the exponent. CPUs have no such product of 16-bit matrices, so there they are upcast a tile
of documents at a time; the gradients are products of bf16 where the CPU has instructions for
them. fp32 goes through oneDNN by tiles, which needs no buffer of the size of a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from w2s_fast.ops import native
from w2s_fast.ops.checks import on_host
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.fused_linear.gemm import product, upcasts
from w2s_fast.ops.info_nce.call import Pairs

_TILE = 1024  # documents


def gradient_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the similarities' gradient: that in which the products run.

    Probabilities of many documents are below the normal numbers of fp16, whatever the CPU has.
    """
    small = x.dtype == torch.float16 and x.device.type == "cpu"
    return torch.float32 if small or upcasts(x) else x.dtype


def _tiles(documents: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield tiles of documents in ``dtype``; those that are converted share a buffer."""
    m, d = documents.shape
    room = None
    if documents.dtype != dtype:
        room = torch.empty((min(_TILE, m), d), dtype=dtype, device=documents.device)
    for start in range(0, m, _TILE):
        at = slice(start, min(start + _TILE, m))
        tile = documents[at]
        yield at, tile if room is None else room[: tile.shape[0]].copy_(tile)


def similarities(queries: Tensor, documents: Tensor, out: Tensor) -> None:
    """Compute out (n, M) = queries documents^T in fp32 (fp64)."""
    if queries.device.type != "cpu" and out.dtype != queries.dtype:
        torch.mm(queries, documents.t(), out_dtype=out.dtype, out=out)
        return
    if queries.device.type != "cpu" or out.dtype == torch.float64:
        torch.mm(queries, documents.t(), out=out)
        return
    wide = queries.float()
    for at, tile in _tiles(documents, torch.float32):
        out[:, at] = product(wide, tile)


class PairGradients:
    """The gradients of queries and documents, summed over chunks of queries.

    Args:
        x: the inputs of the call.
        needs: whether queries and documents get gradients.
        used: (N,) bool: the queries that count. Others are not multiplied: 0 times NaN is NaN.
    """

    def __init__(self, x: Pairs, needs: tuple[bool, bool], used: Tensor) -> None:
        self.x = x
        all_used = not needs[1] or (on_host(used) and bool(used.all()))
        self._used = None if all_used else used
        acc = accumulator(x.queries.dtype)
        # A row has one product, which bf16 holds; fp16 has to meet the loss scale first.
        own = x.queries.dtype if gradient_dtype(x.queries) == torch.bfloat16 else acc
        self._queries = torch.empty_like(x.queries, dtype=own) if needs[0] else None
        self._documents: Tensor | None = None
        if needs[1]:
            self._documents = native.new_buffer(tuple(x.documents.shape), x.documents, acc)
        self._empty = True

    def add(self, grad: Tensor, rows: slice) -> None:
        """Add the parts of a chunk, from its (n, M) gradient of the scaled similarities."""
        if self._queries is not None:
            self._add_queries(grad, self._queries[rows])
        if self._documents is not None:
            queries = self.x.queries[rows]
            if self._used is not None:
                queries = torch.where(self._used[rows].unsqueeze(1), queries, 0.0)
            self._add_documents(grad, queries, self._documents)
        self._empty = False

    def result(self, scale: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return both times ``scale``, in the dtype of their sums; call once."""
        if self._empty and self._documents is not None:
            self._documents.zero_()
        parts = (self._queries, self._documents)
        one, two = (None if g is None else g.mul_(scale) for g in parts)
        return one, two

    def _add_queries(self, grad: Tensor, out: Tensor) -> None:
        documents = self.x.documents
        if grad.device.type != "cpu" and out.dtype != grad.dtype:
            torch.mm(grad, documents, out_dtype=out.dtype, out=out)
        elif out.dtype == torch.bfloat16:
            torch.mm(grad, documents, out=out)
        elif grad.dtype == documents.dtype:
            out.copy_(product(grad, documents.t()))
        else:
            out.zero_()
            for at, tile in _tiles(documents, grad.dtype):
                out += product(grad[:, at], tile.t())

    def _add_documents(self, grad: Tensor, queries: Tensor, out: Tensor) -> None:
        if grad.device.type != "cpu" or grad.dtype == torch.float64:
            self._add_whole(grad, queries, out)
            return
        turned = queries.to(grad.dtype).t()
        n, m = grad.shape
        # Columns of a wide matrix, turned: oneDNN takes twice as long unless they are copied.
        room = grad.new_empty((n, min(_TILE, m)))
        for start in range(0, m, _TILE):
            at = slice(start, min(start + _TILE, m))
            tile = room[:, : at.stop - start].copy_(grad[:, at])
            part = product(tile.t(), turned)
            if self._empty:  # a zero fill would be another pass over the gradient
                out[at] = part
            else:
                out[at] += part

    def _add_whole(self, grad: Tensor, queries: Tensor, out: Tensor) -> None:
        if out.dtype == grad.dtype and self._empty:
            torch.mm(grad.t(), queries, out=out)
        elif out.dtype == grad.dtype:
            torch.addmm(out, grad.t(), queries, out=out)
        elif self._empty:
            torch.mm(grad.t(), queries, out_dtype=out.dtype, out=out)
        else:
            torch.addmm(out, grad.t(), queries, out_dtype=out.dtype, out=out)
