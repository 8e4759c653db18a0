"""CPU backend of InfoNCE's row pass: csrc/cpu/contrastive_rows.h."""

from __future__ import annotations

from w2s_fast.ops import native
from w2s_fast.ops.info_nce.call import RowsCall
from w2s_fast.ops.info_nce.native_call import contrastive


def rows(call: RowsCall) -> None:
    """Fill the record and, with ``grad``, write the gradient; see the reference backend."""
    if call.similarities.shape[0]:
        native.core().contrastive_rows(contrastive(native.core(), call))
