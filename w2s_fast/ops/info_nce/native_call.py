"""The row pass as the compiled backends take it: addresses, sizes and strides."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from w2s_fast.ops.dtypes import DTYPE_CODES
from w2s_fast.ops.info_nce.call import RowsCall


def contrastive(library: ModuleType, call: RowsCall) -> Any:
    """Return the record ``Contrastive`` of csrc/contrastive.h; ``call`` must outlive it."""
    s, rules, grad = call.similarities, call.negatives, call.grad
    return library.Contrastive(
        *s.shape, s.data_ptr(), s.stride(0), call.positives.data_ptr(),
        _address(rules.query_groups), _address(rules.document_groups), _address(rules.mask),
        rules.within, rules.margin, call.scale, call.focal_gamma, _address(call.weight),
        call.stats.data_ptr(), call.stats.stride(0), _address(grad),
        0 if grad is None else grad.stride(0), DTYPE_CODES[(s if grad is None else grad).dtype],
    )  # fmt: skip


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
