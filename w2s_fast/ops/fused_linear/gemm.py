"""The three matrix products of a fused head, chunk by chunk, into buffers of their caller.

N rows, D hidden size, V classes: logits = hidden head^T + bias (forward), dhidden = dlogits head
and dhead = dlogits^T hidden (backward, ``head_gradient.py``), 2 N V D operations each. On CPUs
fp32 goes through oneDNN where that needs no second buffer of the size of the head: its kernels were
1.2 (Zen 4) to 2 (Zen 5) times as fast as MKL's, which ``torch.mm`` calls.

bf16 and fp16 are multiplied as they are where the CPU has instructions for them and oneDNN uses
them. Elsewhere a 16-bit product is 2 (AVX-512) to 300 times (AVX2) slower than one in fp32, so the
operands are upcast a tile of classes at a time, multiplied in fp32 and rounded once. The choice
depends on the instruction set alone, never on a timing: the same machine computes the same numbers
in every run.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator

import torch
from torch import Tensor

from w2s_fast.ops import native
from w2s_fast.ops.chunking import ROUND_ROWS

_TILE = 1 << 20  # entries of a head upcast at a time: 4 MiB in fp32
_DEVICE_TILE = 1 << 13  # classes at a time on a GPU, whose products need to be large
# Entries of a head's gradient in 16 bits at a time: 16 MiB. oneDNN packs the hidden states anew for
# every product; with tiles of 2 MiB that took more time than the products.
_GRADIENT_TILE = 1 << 23
_ONE_DNN_HAS = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}
_PADDING = 8  # entries
_UNPADDED = ("cpu",)
_X86 = platform.machine().lower() in ("x86_64", "amd64")
_BF16_ON_X86 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@functools.cache
def has_kernels(dtype: torch.dtype) -> bool:
    """Return whether this CPU multiplies matrices of ``dtype`` at speed: fp32 and wider always."""
    query = _ONE_DNN_HAS.get(dtype)
    if query is None:
        return True
    if not torch.backends.mkldnn.is_available() or not getattr(torch.ops.mkldnn, query)():
        return False
    # AVX-512 alone is enough for oneDNN to take bf16, but it then multiplies in fp32 itself, at
    # half the speed.
    instructions = [getattr(torch.cpu, name, None) for name in _BF16_ON_X86]
    return dtype != torch.bfloat16 or not _X86 or any(has and has() for has in instructions)


def upcasts(x: Tensor) -> bool:
    """Return whether products of ``x`` are computed in fp32."""
    return x.device.type == "cpu" and not has_kernels(x.dtype)


def tiles(head: Tensor, n: int) -> Iterator[slice]:
    """Yield the classes of a head (V, D) for products with n rows; on a CPU as caches hold them."""
    step = _tile_size(head, n)
    for start in range(0, head.shape[0], step):
        yield slice(start, min(start + step, head.shape[0]))


def gradient_tiles(head: Tensor) -> Iterator[slice]:
    """Yield the classes of a head (V, D), a quarter of them at most, for 16-bit products (., D)."""
    step = max(ROUND_ROWS, min(_GRADIENT_TILE // max(head.shape[1], 1), -(-head.shape[0] // 4)))
    for start in range(0, head.shape[0], step):
        yield slice(start, min(start + step, head.shape[0]))


def upcast_tiles(head: Tensor, n: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield tiles in fp32, in one buffer: new ones would cost a page fault a page."""
    v, d = head.shape
    room = torch.empty((min(_tile_size(head, n), v), d), dtype=torch.float32)
    for at in tiles(head, n):
        yield at, room[: at.stop - at.start].copy_(head[at])


def _tile_size(head: Tensor, n: int) -> int:
    if head.device.type != "cpu":
        return _DEVICE_TILE
    # A quarter of the classes: a tile of logits in fp32 then takes half of what the chunk does.
    return max(ROUND_ROWS, min(_TILE // max(head.shape[1], n, 1), head.shape[0] // 4))


def logits_chunk(
    hidden: Tensor, head: Tensor, bias: Tensor | None, buffer: Tensor | None, alpha: float = 1.0
) -> Tensor:
    """Compute alpha (hidden head^T + bias): (n, V) in the dtype of ``hidden``."""
    if alpha == 1.0 and _one_dnn(hidden):
        return torch.ops.mkldnn._linear_pointwise(hidden, head, bias, "none", [], "")
    if buffer is None:
        buffer = hidden.new_empty((hidden.shape[0], head.shape[0]))
    out = buffer[: hidden.shape[0]]
    if upcasts(hidden):
        return _upcast_logits(hidden, head, bias, out, alpha)
    if bias is None and alpha == 1.0:
        return torch.mm(hidden, head.t(), out=out)
    if bias is None:
        # beta = 0: what the buffer held, NaN or not, is not read.
        return torch.addmm(out, hidden, head.t(), beta=0.0, alpha=alpha, out=out)
    return torch.addmm(bias, hidden, head.t(), beta=alpha, alpha=alpha, out=out)


def _upcast_logits(
    hidden: Tensor, head: Tensor, bias: Tensor | None, out: Tensor, alpha: float
) -> Tensor:
    wide = hidden.float()
    for at, tile in upcast_tiles(head, hidden.shape[0]):
        z = product(wide, tile)
        if bias is not None:
            z += bias[at]
        out[:, at] = z if alpha == 1.0 else z.mul_(alpha)
    return out


def logits_buffer(hidden: Tensor, head: Tensor, rows: int) -> Tensor | None:
    """Allocate the buffer that ``logits_chunk`` reuses; None where it returns new memory."""
    return None if _one_dnn(hidden) else matrix_buffer(rows, head.shape[0], hidden)


def matrix_buffer(rows: int, v: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate (rows, V) for products beside ``like``.

    On a GPU rows are padded to whole multiples of 8 entries, 16 bytes or more: cuBLAS reads
    matrices whose rows start elsewhere (V = 50257) without its widest loads and without TMA. All
    buffers of a call have the same row stride, so the row kernels read them in step.
    """
    if like.device.type in _UNPADDED:
        return native.new_buffer((rows, v), like, dtype)
    stride = -(-v // _PADDING) * _PADDING
    return native.new_buffer((rows, stride), like, dtype)[:, :v]


def hidden_gradient(dlogits: Tensor, head: Tensor, out: Tensor) -> None:
    """Compute out (n, D) = dlogits (n, V) head (V, D)."""
    if _one_dnn(dlogits):
        out.copy_(product(dlogits, head.t()))
    elif upcasts(dlogits):
        total = torch.zeros(out.shape, dtype=torch.float32)
        for at, tile in upcast_tiles(head, dlogits.shape[0]):
            total.addmm_(dlogits[:, at].float(), tile)
        out.copy_(total)
    else:
        torch.mm(dlogits, head, out=out)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute a (m, k) b^T (k, n) with the faster of two libraries."""
    if _one_dnn(a):
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return torch.mm(a, b.t())


def wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute a (m, k) b^T (k, n) in ``dtype``; on a CPU 16-bit operands round it first."""
    if a.device.type == "cuda" and a.dtype.itemsize < 4:
        return torch.mm(a, b.t(), out_dtype=torch.float32).to(dtype)
    return product(a, b).to(dtype)


def _one_dnn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
