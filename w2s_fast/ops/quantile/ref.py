"""Plain torch backend of the order statistics: any device, any dtype, no host sync.

Every backend has the functions of this module: ``quantile`` and ``kth_value`` of local scores (a
sort in this file), and the steps from which a group of ranks computes the same: ``histogram``,
``successor``, ``count_at`` and ``threshold_mask``. Scores (N,) are contiguous, N may be 0; ``keep``
(N,) bool excludes scores, None keeps all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.quantile.keys import BINS, keys_of, rounds_of


def quantile(scores: Tensor, q: Tensor, keep: Tensor | None) -> Tensor:
    """Sort, the definition: excluded scores are moved behind the last kept one."""
    ordered, count, unordered = _in_order(scores, keep)
    valid = (q >= 0) & (q <= 1)  # NaN weak labels give a NaN rank: never used as an index
    position = torch.where(valid, q, 0.0) * (count - 1).clamp_min(0)
    low = position.floor()
    below = _at(ordered, low.long())
    above = _at(ordered, position.ceil().long())
    f = (position - low).to(ordered.dtype)
    value = between(below, above, f)
    value = torch.where(count > 0, value, float("inf"))
    return torch.where(unordered | ~valid, float("nan"), value)


def between(below: Tensor, above: Tensor, f: Tensor) -> Tensor:
    """Interpolate at fraction ``f`` between two neighbours in order."""
    gap = above - below
    open_ended = (below == -torch.inf) | (above == torch.inf)
    wide = torch.where(open_ended, above, below * (1 - f) + above * f)  # where the gap overflows
    value = torch.where(gap == torch.inf, wide, torch.lerp(below, above, f))
    # inf - inf is NaN, and neither equal neighbours nor an exact rank need interpolation.
    return torch.where((below == above) | (f == 0), below, value)


def kth_value(scores: Tensor, rank: Tensor, keep: Tensor | None) -> Tensor:
    """Sort, the definition: the kept score of 0-based ``rank``; NaN if there is none."""
    ordered, count, unordered = _in_order(scores, keep)
    missing = (rank < 0) | (rank >= count) | unordered
    return torch.where(missing, float("nan"), _at(ordered, torch.where(missing, 0, rank)))


def histogram(scores: Tensor, keep: Tensor | None, prefix: Tensor, step: int) -> Tensor:
    """Count keys whose digits before round ``step`` are ``prefix``, by the next digit: (2049,).

    The last entry is the number of NaN in round 0, else 0; NaN are counted in some bin as well.
    """
    shift, bits = rounds_of(scores.dtype)[step]
    keys = keys_of(scores)
    width = 64 if scores.dtype == torch.float64 else 32
    selected = torch.ones_like(keys, dtype=torch.bool) if keep is None else keep
    unordered = (scores.isnan() & selected).sum() if step == 0 else torch.zeros_like(prefix)
    if step > 0:
        done = width - shift - bits
        selected = selected & ((keys >> (shift + bits)) & ((1 << done) - 1) == prefix)
    digit = torch.where(selected, (keys >> shift) & ((1 << bits) - 1), BINS)
    counts = torch.zeros(BINS + 1, dtype=torch.int64, device=scores.device)
    counts.scatter_add_(0, digit, torch.ones_like(digit))
    counts[BINS] = unordered
    return counts


def successor(scores: Tensor, keep: Tensor | None, at: Tensor) -> Tensor:
    """Return the 0-d smallest kept score above ``at``; +inf if there is none."""
    x = scores.to(accumulator(scores.dtype))
    above = x > at if keep is None else (x > at) & keep
    candidates = torch.where(above, x, float("inf"))
    return torch.cat([candidates, candidates.new_full((1,), float("inf"))]).amin()


def count_at(scores: Tensor, keep: Tensor | None, at: Tensor) -> Tensor:
    """Return (2,) int64: the number of kept scores above ``at`` and equal to it."""
    above, equal = _compare(scores, keep, at)
    return torch.stack([above.sum(), equal.sum()])


def threshold_mask(scores: Tensor, keep: Tensor | None, at: Tensor, ties: Tensor) -> Tensor:
    """Return (N,) bool: kept scores above ``at`` and the first ``ties`` of those equal to it."""
    above, equal = _compare(scores, keep, at)
    return above | (equal & (equal.cumsum(0) <= ties))


def _compare(scores: Tensor, keep: Tensor | None, at: Tensor) -> tuple[Tensor, Tensor]:
    x = scores.to(accumulator(scores.dtype))
    above, equal = x > at, x == at
    return (above, equal) if keep is None else (above & keep, equal & keep)


def _at(x: Tensor, i: Tensor) -> Tensor:
    """Return x[i] for a 0-d index, which brackets would read on the host."""
    return x.gather(0, i.unsqueeze(0)).squeeze(0)


def _in_order(scores: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sort kept scores, +inf behind them; return also their number and whether one is NaN."""
    x = scores.to(accumulator(scores.dtype))
    count = torch.full((), x.numel(), dtype=torch.float64, device=x.device)
    unordered = x.isnan()
    if keep is not None:
        count = keep.sum(dtype=torch.float64)
        x = torch.where(keep, x, float("inf"))
        unordered = unordered & keep
    return torch.where(unordered, float("inf"), x).sort().values, count, unordered.any()
