"""The three matrix products of a fused head, chunk by chunk, into buffers of their caller.

N rows, D hidden size, V classes: logits = hidden head^T + bias (forward), dhidden = dlogits head
and dhead = dlogits^T hidden (backward), 2 N V D operations each. On CPUs fp32 goes through oneDNN
where that needs no second buffer of the size of the head: its kernels were 1.2 (Zen 4) to 2 (Zen 5)
times as fast as MKL's, which ``torch.mm`` calls. bf16 and fp16 are oneDNN's in any case.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

_MIB = 1 << 20
# Rows of a chunk are a multiple of this where the budget allows: GEMM tiles stay full.
_ROUND = 64


def rows_per_chunk(n: int, v: int, itemsize: int, memory_mib: float) -> int:
    """Rows of logits that ``memory_mib`` holds; chunks of one call have nearly equal size.

    Raises:
        W2SError: if the budget is not a positive number or holds less than one row.
    """
    row = v * itemsize
    if not (isinstance(memory_mib, int | float) and 0 < memory_mib < math.inf):
        raise W2SError(f"memory_mib is {memory_mib!r}; expected a positive number of MiB")
    fit = int(memory_mib * _MIB) // row
    if fit < 1:
        raise W2SError(
            f"memory_mib is {memory_mib}, one row of {v} logits takes {row / _MIB:.3g} MiB; "
            f"expected at least that, and 64 rows or more to run at speed"
        )
    if fit >= n:
        return max(n, 1)
    chunks = -(-n // fit)
    even = -(-n // chunks)
    rounded = -(-even // _ROUND) * _ROUND
    return rounded if rounded <= fit else even


def logits_chunk(
    hidden: Tensor, head: Tensor, bias: Tensor | None, buffer: Tensor | None, alpha: float = 1.0
) -> Tensor:
    """alpha (hidden head^T + bias): (n, V) in the dtype of ``hidden``; may be in ``buffer``."""
    if alpha == 1.0 and _one_dnn(hidden):
        return torch.ops.mkldnn._linear_pointwise(hidden, head, bias, "none", [], "")
    if buffer is None:
        buffer = hidden.new_empty((hidden.shape[0], head.shape[0]))
    out = buffer[: hidden.shape[0]]
    if bias is None and alpha == 1.0:
        return torch.mm(hidden, head.t(), out=out)
    if bias is None:
        # beta = 0: what the buffer held, NaN or not, is not read.
        return torch.addmm(out, hidden, head.t(), beta=0.0, alpha=alpha, out=out)
    return torch.addmm(bias, hidden, head.t(), beta=alpha, alpha=alpha, out=out)


def logits_buffer(hidden: Tensor, head: Tensor, rows: int) -> Tensor | None:
    """What ``logits_chunk`` writes into again and again; None where it brings its own."""
    return None if _one_dnn(hidden) else hidden.new_empty((rows, head.shape[0]))


def hidden_gradient(dlogits: Tensor, head: Tensor, out: Tensor) -> None:
    """out (n, D) = dlogits (n, V) head (V, D)."""
    if _one_dnn(dlogits):
        out.copy_(torch.ops.mkldnn._linear_pointwise(dlogits, head.t(), None, "none", [], ""))
    else:
        torch.mm(dlogits, head, out=out)


class HeadGradient:
    """The gradients of head (V, D) and bias (V), summed over chunks.

    Args:
        head: gives shape, dtype and device.
        fp32: sum the chunks in fp32 and round once at the end; costs 4 V D bytes, and on CPUs a
            product of the size of the head beside them.
        with_bias: also sum dlogits over rows.
        with_head: False keeps a frozen head out.
    """

    def __init__(self, head: Tensor, fp32: bool, with_bias: bool, with_head: bool = True) -> None:
        wide = torch.float32 if fp32 and head.dtype.itemsize < 4 else head.dtype
        self.dtype = head.dtype
        self.head = torch.empty_like(head, dtype=wide) if with_head else None
        self.bias: Tensor | None = None
        if with_bias:
            acc = torch.float64 if head.dtype == torch.float64 else torch.float32
            self.bias = torch.zeros(head.shape[0], dtype=acc, device=head.device)
        self._empty = True

    def add(self, dlogits: Tensor, hidden: Tensor) -> None:
        """Add dlogits^T hidden, and the column sums."""
        if self.head is not None:
            self._add_product(dlogits.t(), hidden)
        if self.bias is not None:
            self.bias += dlogits.sum(0, dtype=self.bias.dtype)
        self._empty = False

    def _add_product(self, a: Tensor, b: Tensor) -> None:
        out = self.head
        assert out is not None
        if out.dtype == a.dtype:
            # The first chunk overwrites: a zero fill would be a pass over the head of its own.
            if self._empty:
                torch.mm(a, b, out=out)
            else:
                torch.addmm(out, a, b, out=out)
        elif out.device.type == "cpu":
            # CPU products have no wider output: round each chunk, add in fp32.
            product = torch.mm(a, b)
            if self._empty:
                out.copy_(product)
            else:
                out += product
        elif self._empty:
            torch.mm(a, b, out_dtype=out.dtype, out=out)
        else:
            torch.addmm(out, a, b, out_dtype=out.dtype, out=out)

    def add_entries(self, classes: Tensor, values: Tensor, hidden: Tensor) -> None:
        """Add dlogits^T hidden of M rows with K entries each: classes and values (M, K).

        A class met often in one of the K columns is summed in fp32 and rounded into the gradient
        once; on a GPU, where finding the classes met would wait for the device, every row is.
        """
        if self.bias is not None:
            flat = values.reshape(-1).to(self.bias.dtype)
            self.bias.index_add_(0, classes.reshape(-1), flat)
        if self.head is None:
            return
        wide = hidden.to(values.dtype)
        if classes.device.type != "cpu":
            for k in range(classes.shape[1]):
                rows = (wide * values[:, k : k + 1]).to(self.head.dtype)
                self.head.index_add_(0, classes[:, k], rows)
            return
        for k in range(classes.shape[1]):  # one (M, D) sum at a time, never (M K, D)
            met, at = classes[:, k].unique(return_inverse=True)
            sums = values.new_zeros((met.shape[0], wide.shape[1]))
            # Not index_add_, whose CPU loop costs microseconds a row.
            sums.scatter_add_(0, at.unsqueeze(1).expand_as(wide), wide * values[:, k : k + 1])
            self.head[met] = (self.head[met].to(values.dtype) + sums).to(self.head.dtype)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients in the dtype of the head (None for what was not asked for)."""
        if self._empty and self.head is not None:
            self.head.zero_()
        head = None if self.head is None else self.head.to(self.dtype)
        return head, None if self.bias is None else self.bias.to(self.dtype)


def _one_dnn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
