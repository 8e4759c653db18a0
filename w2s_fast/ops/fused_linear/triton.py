"""Launches the Triton kernel of ``late_gate.py`` for rows whose softmax factor changes."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from w2s_fast.kernels import closed_rows as kernels
from w2s_fast.ops.dispatch import interpreted
from w2s_fast.ops.fused_linear.chunks import Gradients, HeadInputs
from w2s_fast.ops.native_cuda import device_of

_BLOCKS = {"BLOCK_N": 32, "BLOCK_V": 64, "BLOCK_D": 32, "num_warps": 8}


def add_softmax(x: HeadInputs, pull: Tensor, lse: Tensor, softcap: float, grads: Gradients) -> None:
    """Add sum_i pull_i p_i hidden_i to the gradients of head and bias, without a wait.

    Args:
        pull: (N,) fp32; rows of 0 are not touched.
        lse: (N,) fp32 log-sum-exp of the rows' logits.
    """
    if grads.head is None:
        return
    moved = pull != 0
    rows = moved.to(torch.uint8).argsort(descending=True, stable=True)
    hidden, head = x.hidden, x.head
    into = grads.head.head
    with device_of(hidden):
        kernels.head_gradient_kernel[(triton.cdiv(head.shape[0], _BLOCKS["BLOCK_V"]),)](
            hidden, hidden.stride(0), head, head.stride(0), x.bias, rows, moved.sum(), pull, lse,
            into, 0 if into is None else into.stride(0), grads.head.bias,
            head.shape[0], head.shape[1], x.alpha, softcap, CAP=softcap != 0, WIDEN=interpreted(),
            **_BLOCKS,
        )  # fmt: skip
