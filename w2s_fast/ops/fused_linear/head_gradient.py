"""The gradients of a fused head, summed over chunks of rows and over rows of one class.

16-bit gradients of several chunks are summed in fp32 and rounded once. A CPU rounds the product of
every chunk to 16 bits; the second of two is therefore added to the first within the product, which
rounds as often and needs no buffer in fp32. Sums over rows of one class have a fixed order and no
atomics: the same call gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops import native
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.fused_linear.gemm import gradient_tiles, tiles, upcasts


class HeadGradient:
    """The gradients of head (V, D) and bias (V), summed over chunks.

    Args:
        head: gives shape, dtype and device.
        fp32: sum the parts of a 16-bit head in fp32 and round once at the end; costs 4 V D bytes
            where there are several (three or more on a CPU that multiplies in 16 bits).
        parts: how many times the gradient is added to, or more.
        with_bias: also sum dlogits over rows.
        with_head: False for a frozen head.
        into: (V, D) buffer that the head's gradient is added to; ``result`` then has none.
    """

    def __init__(
        self,
        head: Tensor,
        fp32: bool,
        parts: int,
        with_bias: bool,
        with_head: bool = True,
        into: Tensor | None = None,
    ) -> None:
        self.dtype, self._into = head.dtype, into
        self.head = into
        if with_head and into is None:
            narrow = 2 if head.device.type == "cpu" and not upcasts(head) else 1
            wide = fp32 and head.dtype.itemsize < 4 and parts > narrow
            dtype = torch.float32 if wide else head.dtype
            self.head = native.new_buffer(tuple(head.shape), head, dtype)
        self.bias: Tensor | None = None
        if with_bias:
            acc = accumulator(head.dtype)
            self.bias = torch.zeros(head.shape[0], dtype=acc, device=head.device)
        self._empty = into is None

    def add(self, dlogits: Tensor, hidden: Tensor) -> None:
        """Add dlogits^T hidden, and the column sums."""
        if self.head is not None:
            self._add_product(dlogits, hidden)
        if self.bias is not None:
            self.bias += dlogits.sum(0, dtype=self.bias.dtype)
        self._empty = False

    def _add_product(self, dlogits: Tensor, hidden: Tensor) -> None:
        out = self.head
        assert out is not None
        # The first chunk overwrites: a zero fill would be another pass over the head.
        if upcasts(dlogits) or (out.dtype != hidden.dtype and out.device.type == "cpu"):
            self._add_tiles(out, dlogits, hidden)
        elif out.dtype != hidden.dtype and self._empty:
            torch.mm(dlogits.t(), hidden, out_dtype=out.dtype, out=out)
        elif out.dtype != hidden.dtype:
            torch.addmm(out, dlogits.t(), hidden, out_dtype=out.dtype, out=out)
        elif self._empty:
            torch.mm(dlogits.t(), hidden, out=out)
        else:
            torch.addmm(out, dlogits.t(), hidden, out=out)

    def _add_tiles(self, out: Tensor, dlogits: Tensor, hidden: Tensor) -> None:
        """Add by tiles: CPU products have no output wider than their factors."""
        if not upcasts(dlogits):
            self._add_rounded(out, dlogits, hidden)
            return
        hidden = hidden.float()
        for at in tiles(out, hidden.shape[0]):
            part = dlogits[:, at].float().t()
            if out.dtype != part.dtype and self._empty:
                out[at] = torch.mm(part, hidden)
            elif out.dtype != part.dtype:
                out[at] += torch.mm(part, hidden)
            elif self._empty:
                torch.mm(part, hidden, out=out[at])
            else:
                torch.addmm(out[at], part, hidden, out=out[at])

    def _add_rounded(self, out: Tensor, dlogits: Tensor, hidden: Tensor) -> None:
        room = None
        for at in gradient_tiles(out):
            if room is None:  # one buffer: new ones would cost a page fault a page
                room = native.new_buffer((at.stop, out.shape[1]), hidden)
            part = torch.mm(dlogits[:, at].t(), hidden, out=room[: at.stop - at.start])
            if self._empty:
                out[at] = part
            else:
                out[at] += part

    def add_entries(self, classes: Tensor, values: Tensor, hidden: Tensor) -> None:
        """Add dlogits^T hidden of M rows with K entries each: classes and values (M, K)."""
        if self.bias is not None:
            flat = values.reshape(-1, 1).to(self.bias.dtype)
            add_by_class(self.bias.unsqueeze(1), classes.reshape(-1), flat)
        if self.head is None:
            return
        wide = hidden.to(values.dtype)
        for k in range(classes.shape[1]):  # one (M, D) product at a time, never (M K, D)
            add_by_class(self.head, classes[:, k], wide * values[:, k : k + 1])

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """Return both gradients in the dtype of the head (None for a frozen or added part)."""
        if self._empty and self.head is not None:
            self.head.zero_()
        head = None if self._into is not None else self.head
        if head is not None and head.dtype != self.dtype:
            head = native.new_buffer(tuple(head.shape), head, self.dtype).copy_(head)
        return head, None if self.bias is None else self.bias.to(self.dtype)


def add_by_class(into: Tensor, classes: Tensor, rows: Tensor) -> None:
    """Add into[classes_i] += rows_i for into (V, D), classes (M,), rows (M, D) in fp32 or fp64.

    Rows of one class are summed in the precision of ``rows`` and added to ``into`` once.
    """
    if into.device.type == "cpu":
        _add_unique(into, classes, rows)
    else:
        _add_sorted(into, classes, rows)


def _add_unique(into: Tensor, classes: Tensor, rows: Tensor) -> None:
    met, at = classes.unique(return_inverse=True)
    sums = rows.new_zeros((met.shape[0], rows.shape[1]))
    # Not index_add_, whose CPU loop costs microseconds a row.
    sums.scatter_add_(0, at.unsqueeze(1).expand_as(rows), rows)
    into[met] = (into[met].to(rows.dtype) + sums).to(into.dtype)


def _add_sorted(into: Tensor, classes: Tensor, rows: Tensor) -> None:
    """Add on a GPU; counting the classes would wait for it, so there are as many slots as rows."""
    classes, order = classes.sort(stable=True)
    first = torch.ones_like(classes, dtype=torch.bool)
    first[1:] = classes[1:] != classes[:-1]
    slot = first.cumsum(0) - 1
    # Accumulating index_put_ sorts its indices and sums in their order; index_add_ has atomics.
    sums = torch.zeros_like(rows).index_put_((slot,), rows[order], accumulate=True)
    # Slots beyond the last class add 0 to class 0.
    of_slot = torch.zeros_like(classes).index_put_((slot,), classes)
    into.index_add_(0, of_slot, sums.to(into.dtype))
