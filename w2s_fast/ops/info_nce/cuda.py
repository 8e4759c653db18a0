"""CUDA backend of InfoNCE's row pass: csrc/cuda/contrastive.h; nothing waits for the device."""

from __future__ import annotations

from w2s_fast.ops import native_cuda as native
from w2s_fast.ops.info_nce.call import RowsCall
from w2s_fast.ops.info_nce.native_call import contrastive


def rows(call: RowsCall) -> None:
    """Fill the record and, with ``grad``, write the gradient; see the reference backend.

    A positive that is no document turns its row's loss and gradient into NaN.
    """
    s, library = call.similarities, native.library()
    if not s.shape[0]:
        return
    with native.device_of(s):
        error = library.contrastive_rows(contrastive(library, call), native.stream_of(s))
    native.check(error, f"contrastive of {s.shape[0]} x {s.shape[1]}")
