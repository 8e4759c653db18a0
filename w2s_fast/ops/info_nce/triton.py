"""Triton backend of InfoNCE's row pass: launches kernels/info_nce.py, never syncs."""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.kernels import _tile, info_nce
from w2s_fast.ops.info_nce.call import NO_MARGIN, RowsCall
from w2s_fast.ops.native_cuda import device_of


def rows(call: RowsCall) -> None:
    """Fill the record and, with ``grad``, write the gradient; see the reference backend.

    A positive that is no document turns its row's loss and gradient into NaN.
    """
    s, grad, rules = call.similarities, call.grad, call.negatives
    n, m = s.shape
    if n == 0:
        return
    mask = None if rules.mask is None else rules.mask.view(torch.uint8)
    with device_of(s):
        info_nce.info_nce_kernel[(n,)](
            s, s.stride(0), grad, 0 if grad is None else grad.stride(0), call.positives,
            rules.query_groups, rules.document_groups, mask, call.weight, call.stats,
            call.stats.stride(0), m, 0.0 if rules.margin == NO_MARGIN else rules.margin,
            call.scale, call.focal_gamma, WITHIN=rules.within, MARGIN=rules.margin != NO_MARGIN,
            FOCAL_WEIGHT=call.focal_gamma != 0, G_STEP=_in_step(s, grad),
            **_tile.tile(m, s.element_size()),
        )  # fmt: skip


def _in_step(s: Tensor, grad: Tensor | None) -> bool:
    """Return whether 16-byte boundaries of the gradient lie where those of the similarities do."""
    if grad is None:
        return True
    if grad.dtype == s.dtype:
        apart = (grad.stride(0) - s.stride(0)) * s.element_size()
        return (grad.data_ptr() - s.data_ptr()) % 16 == 0 == apart % 16
    return all(x.data_ptr() % 16 == 0 == x.stride(0) * x.element_size() % 16 for x in (s, grad))
