"""What gates that close late change in the gradient of a head, for weak labels of any mass."""

import triton
import triton.language as tl

from w2s_fast.kernels._row_math import diffs


@triton.jit
def head_gradient_kernel(
    hidden_ptr, hidden_stride, head_ptr, head_stride, bias_ptr, rows_ptr, count_ptr, pull_ptr,
    lse_ptr, grad_ptr, grad_stride, bias_grad_ptr, n_cols, size, alpha, softcap,
    CAP: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add sum_i pull_i p_i hidden_i of the listed rows to the gradient of a tile of classes.

    Their number is in device memory: no row, no work. A program owns the rows of the gradient that
    it writes, so sums have a fixed order.

    Args:
        rows_ptr: (M,) int64 rows of hidden (N, size), the first ``*count_ptr`` of which count.
        pull_ptr, lse_ptr: (N,) factor of the softmax p of a row, and its log-sum-exp.
        grad_ptr, bias_grad_ptr: (V, size) and (V,), either may be None.
        WIDEN: multiply in fp32, as the interpreter has to.
    """
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    of_class = v < n_cols
    count = tl.load(count_ptr)
    for start in range(0, count, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        listed = n < count
        row = tl.load(rows_ptr + n, mask=listed, other=0)
        z = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        for first in range(0, size, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            h = tile_of(hidden_ptr, hidden_stride, row, listed, d, size, WIDEN)
            w = tile_of(head_ptr, head_stride, v, of_class, d, size, WIDEN)
            z += tl.dot(h, tl.trans(w), input_precision="ieee")
        if bias_ptr is not None:
            z += tl.load(bias_ptr + v, mask=of_class, other=0.0).to(tl.float32)[None, :]
        # The pass has seen logits in the dtype of the head.
        u = (alpha * z).to(hidden_ptr.dtype.element_ty)
        lse = tl.load(lse_ptr + row, mask=listed, other=0.0)
        pull = tl.load(pull_ptr + row, mask=listed, other=0.0)
        below, slope = diffs(u, lse[:, None], softcap, CAP)
        inside = listed[:, None] & of_class[None, :]
        p = tl.where(inside, pull[:, None] * tl.exp(below) * slope, 0.0)
        if bias_grad_ptr is not None:
            total = tl.load(bias_grad_ptr + v, mask=of_class, other=0.0)
            tl.store(bias_grad_ptr + v, total + tl.sum(p, 0), mask=of_class)
        if grad_ptr is not None:
            p = tl.trans(p.to(hidden_ptr.dtype.element_ty))
            if WIDEN:
                p = p.to(tl.float32)
            for first in range(0, size, BLOCK_D):
                d = first + tl.arange(0, BLOCK_D)
                h = tile_of(hidden_ptr, hidden_stride, row, listed, d, size, WIDEN)
                part = tl.dot(p, h, input_precision="ieee")
                at = grad_ptr + v.to(tl.int64)[:, None] * grad_stride + d[None, :]
                kept = of_class[:, None] & (d < size)[None, :]
                part += tl.load(at, mask=kept, other=0.0).to(tl.float32)
                tl.store(at, part.to(grad_ptr.dtype.element_ty), mask=kept)


@triton.jit
def tile_of(ptr, stride, row, valid, d, size, WIDEN: tl.constexpr):
    """Load the entries ``d`` of some rows of a matrix, 0 outside."""
    at = ptr + row.to(tl.int64)[:, None] * stride + d[None, :]
    x = tl.load(at, mask=valid[:, None] & (d < size)[None, :], other=0.0)
    return x.to(tl.float32) if WIDEN else x
