"""Scores as integer keys in the same order, and the rounds in which a radix select reads them.

A key is the score's bit pattern made monotone: 32 bits for fp32 and narrower scores, 64 for fp64,
in an int64 either way. Digits are taken as of an unsigned number. -0 and +0 have one key.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 2048
_TOP = -(2**63)


def rounds_of(dtype: torch.dtype) -> tuple[tuple[int, int], ...]:
    """Return (shift, bits) of the digit that each round counts by."""
    if dtype == torch.float64:
        return ((53, 11), (42, 11), (31, 11), (20, 11), (10, 10), (0, 10))
    return ((21, 11), (10, 11), (0, 10))


def keys_of(scores: Tensor) -> Tensor:
    """Return int64 keys of floating point scores of any shape; NaN has some key."""
    if scores.dtype == torch.float64:
        bits = (scores + 0.0).view(torch.int64)
        return bits ^ ((bits >> 63) | _TOP)
    bits = (scores.to(torch.float32) + 0.0).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return torch.where(bits >= 2**31, 2**32 - 1 - bits, bits + 2**31)


def score_of(key: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the score (``accumulator(dtype)``) of a key."""
    if dtype == torch.float64:
        return torch.where(key < 0, key ^ _TOP, ~key).view(torch.float64)
    bits = torch.where(key >= 2**31, key - 2**31, 2**32 - 1 - key)
    return bits.to(torch.int32).view(torch.float32)
