"""Dtypes of the ops: which logits are read, their codes in C++, and the precision of sums."""

from __future__ import annotations

import torch
from torch import Tensor

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# ``w2s::DType`` in csrc/w2s.h, of the core and of the CUDA kernels.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums, records and order statistics: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which ``F.linear`` would read ``x`` under the current autocast.

    Autocast leaves fp64 alone, and integers.
    """
    device = x.device.type
    cast = x.is_floating_point() and x.dtype != torch.float64
    # Asking whether autocast is enabled is an error on devices that have none, such as meta.
    if not cast or not torch.amp.is_autocast_available(device):
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
