"""Plain torch backend of the order statistics: any device, any dtype, no host sync.

A backend answers locally (``quantile``, ``kth_value``: here a sort) and offers the rounds from
which a group of ranks finds the same: ``histogram``, ``successor``, ``tally`` and ``mark``. Scores
(N,) are contiguous and of any number, 0 included; ``keep`` (N,) bool leaves scores out, None keeps
all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops.quantile.api import kth_value_ref as kth_value
from w2s_fast.ops.quantile.api import quantile_ref as quantile
from w2s_fast.ops.quantile.keys import BINS, accumulator, keys_of, rounds_of

__all__ = ["histogram", "kth_value", "mark", "quantile", "successor", "tally"]


def histogram(scores: Tensor, keep: Tensor | None, prefix: Tensor, step: int) -> Tensor:
    """(2049,) int64: keys whose digits before round ``step`` are ``prefix``, by the next digit.

    The last entry is the number of NaN in round 0, else 0; NaN are counted in some bin as well.
    """
    shift, bits = rounds_of(scores.dtype)[step]
    keys = keys_of(scores)
    width = 64 if scores.dtype == torch.float64 else 32
    here = torch.ones_like(keys, dtype=torch.bool) if keep is None else keep
    unordered = (scores.isnan() & here).sum() if step == 0 else torch.zeros_like(prefix)
    if step > 0:
        done = width - shift - bits
        here = here & ((keys >> (shift + bits)) & ((1 << done) - 1) == prefix)
    digit = torch.where(here, (keys >> shift) & ((1 << bits) - 1), BINS)
    counts = torch.zeros(BINS + 1, dtype=torch.int64, device=scores.device)
    counts.scatter_add_(0, digit, torch.ones_like(digit))
    counts[BINS] = unordered
    return counts


def successor(scores: Tensor, keep: Tensor | None, at: Tensor) -> Tensor:
    """0-d smallest kept score above ``at``; +inf if there is none."""
    x = scores.to(accumulator(scores.dtype))
    above = x > at if keep is None else (x > at) & keep
    candidates = torch.where(above, x, float("inf"))
    return torch.cat([candidates, candidates.new_full((1,), float("inf"))]).amin()


def tally(scores: Tensor, keep: Tensor | None, at: Tensor) -> Tensor:
    """(2,) int64: kept scores above ``at`` and equal to it."""
    above, equal = _compare(scores, keep, at)
    return torch.stack([above.sum(), equal.sum()])


def mark(scores: Tensor, keep: Tensor | None, at: Tensor, ties: Tensor) -> Tensor:
    """(N,) bool: kept scores above ``at`` and the first ``ties`` of those equal to it."""
    above, equal = _compare(scores, keep, at)
    return above | (equal & (equal.cumsum(0) <= ties))


def _compare(scores: Tensor, keep: Tensor | None, at: Tensor) -> tuple[Tensor, Tensor]:
    x = scores.to(accumulator(scores.dtype))
    above, equal = x > at, x == at
    return (above, equal) if keep is None else (above & keep, equal & keep)
