"""Perturb weights in their last bits, to measure how far a training amplifies rounding."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from w2s_fast.models.weights import gathered

if TYPE_CHECKING:
    from torch import nn


@torch.no_grad()
def perturb_last_bits(model: nn.Module, seed: int) -> None:
    """Multiply every weight by 1 + eps or 1 - eps, eps of its dtype; zeros stay.

    This is as large as the rounding of one product, and does not depend on the number of processes
    or on the ZeRO stage.

    Args:
        model: Its parameters, fp32, bf16 or fp16, are changed in place.
        seed: Of the signs.
    """
    for name, weight in model.named_parameters():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        with gathered([weight], change=True):
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.mul_(1 + torch.finfo(weight.dtype).eps * signs.to(weight.device))
