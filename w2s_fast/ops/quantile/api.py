r"""Exact order statistics of any number of scores, on one device or over a process group.

    quantile(x, q) = (1 - f) x_(k) + f x_(k+1),   k = floor(q (N-1)),  f = q (N-1) - k

where x_(0) <= ... <= x_(N-1) are the kept scores in order. It is ``torch.quantile`` without its
limit of 2^24 elements, and it can exclude rows without compacting them first. If one of the two
scores is infinite and 0 < f < 1, it is x_(k+1): the scores at or above it are then those from k + 1
on, as between finite scores (``torch.quantile`` returns NaN or an infinity there). Order statistics
are detached: no gradient flows through them. Nothing is sorted and, with a process group, no score
leaves its rank. Nothing here waits for a CUDA device.

Ties: equal scores share their value, and throughout this package a score is above a threshold t
if ``score >= t``. So with two classes all scores that tie with t count as class 0. A mask of
the top fraction has an exact size instead: of the scores that tie at its edge it takes those of the
lowest rank of the group first, within a rank those of the lowest index. -0 and +0 are equal.
Rank positions are computed in fp64, where ``torch.quantile`` uses the dtype of its input; the two
can differ in the last bit of f.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.checks import check_dense
from w2s_fast.ops.dispatch import LIBRARY, Cost, Op, backend
from w2s_fast.ops.dtypes import LOGIT_DTYPES, accumulator
from w2s_fast.ops.quantile import distributed, ref
from w2s_fast.ops.transforms import sample_by_sample


@checked
def quantile(
    scores: Tensor, q: float | Tensor, *, keep: Tensor | None = None, group: Any = None
) -> Tensor:
    """Compute the exact q-quantile of all elements of ``scores``.

    Equivalent to ``torch.quantile(scores.float().flatten(), q)``, for any number of elements, but
    beside an infinity (see above).

    Args:
        scores: floating point tensor of any shape with N >= 1 elements (N >= 0 with ``group``).
        q: float or 0-d tensor in [0, 1].
        keep: bool, shape of ``scores``: elements that count; None for all.
        group: ``torch.distributed`` process group: the quantile of all its ranks' scores together.
            A collective call; ranks may hold different numbers of scores, but of one dtype.

    Returns:
        0-d tensor, fp64 for fp64 scores, else fp32. NaN if a kept score is NaN or a tensor ``q`` is
        outside [0, 1]; +inf if no score is kept. No gradient.

    Raises:
        W2SError: if there are no scores, they are not floating point, q is outside [0, 1], or
            ``keep`` or ``group`` do not fit.
    """
    x, keep = _checked(scores, keep, group)
    return masked_quantile(x, q, keep, group)


@checked
def kth_value(
    scores: Tensor, k: int | Tensor, *, keep: Tensor | None = None, group: Any = None
) -> Tensor:
    """Return the k-th smallest element, counted from 1 as ``torch.kthvalue`` does.

    Equivalent to ``torch.kthvalue(scores.float().flatten(), k).values``, except that a NaN makes
    the result NaN, wherever it would be sorted to.

    Args:
        scores, keep, group: see ``quantile``.
        k: int or 0-d integer tensor, from 1 to the number of kept scores.

    Returns:
        0-d tensor, fp64 for fp64 scores, else fp32: an element, unrounded. NaN if a kept score is
        NaN, or if there are fewer than k kept scores and only the device or the group knows.

    Raises:
        W2SError: see ``quantile``; if k is below 1 or above the number of elements.
    """
    x, keep = _checked(scores, keep, group)
    if not isinstance(k, Tensor):
        most = x.numel() if group is None else 2**62
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
            raise W2SError(f"k is {k}; expected an integer from 1 to the number of scores, {most}")
        k = torch.full((), k, dtype=torch.int64, device=x.device)
    elif k.dim() or k.is_floating_point():
        raise W2SError(
            f"k has shape {tuple(k.shape)} and dtype {k.dtype}; expected an integer or a 0-d "
            "integer tensor"
        )
    rank = k.to(device=x.device, dtype=torch.int64) - 1
    if group is None:
        return torch.ops.w2s_fast.kth_value(x, rank, keep)
    return distributed.kth_value(backend("quantile", x), x, rank, keep, group)


@checked
def top_fraction_mask(
    scores: Tensor, fraction: float | Tensor, *, keep: Tensor | None = None, group: Any = None
) -> Tensor:
    """Return a mask of the largest elements: exactly round(fraction * kept), halves to even.

    Args:
        scores, keep, group: see ``quantile``. With ``group`` the mask has that many true elements
            over all ranks together; each rank gets its own part.
        fraction: float or 0-d tensor in [0, 1].

    Returns:
        Bool tensor in the shape of ``scores``, true only where ``keep`` is. Ties: see the module.
        All false if a kept score is NaN or a tensor ``fraction`` is outside [0, 1].

    Raises:
        W2SError: see ``quantile``.
    """
    x, keep = _checked(scores, keep, group)
    fraction = _fraction("fraction", fraction, x)
    if group is None:
        mask = torch.ops.w2s_fast.top_mask(x, fraction, keep)
    else:
        mask = distributed.top_mask(backend("quantile", x), x, fraction, keep, group)
    return mask.reshape(scores.shape)


def masked_quantile(
    scores: Tensor, q: float | Tensor, keep: Tensor | None, group: Any = None
) -> Tensor:
    """Compute the quantile of the scores (N,) with ``keep`` (N,); +inf if there are none."""
    q = _fraction("q", q, scores)
    if group is not None:
        return distributed.quantile(backend("quantile", scores), scores.detach(), q, keep, group)
    if scores.numel() == 0:
        return torch.full_like(q, float("inf"), dtype=scores.dtype)
    return torch.ops.w2s_fast.quantile(scores.detach(), q, keep)


def _checked(scores: Tensor, keep: Tensor | None, group: Any) -> tuple[Tensor, Tensor | None]:
    """Check scores and mask and return them flat and contiguous."""
    few = scores.numel() == 0 and group is None
    if scores.dtype not in LOGIT_DTYPES or few:
        raise W2SError(
            f"scores have shape {tuple(scores.shape)} and dtype {scores.dtype}; expected at least "
            "one floating point element in fp32, bf16, fp16 or fp64"
        )
    check_dense("scores", scores)
    if group is not None:
        distributed.check_group(group)
    if keep is not None:
        if keep.dtype != torch.bool or keep.shape != scores.shape or keep.device != scores.device:
            raise W2SError(
                f"keep has shape {tuple(keep.shape)}, dtype {keep.dtype} and device {keep.device}; "
                f"expected bool of shape {tuple(scores.shape)} on {scores.device}"
            )
        keep = keep.detach().reshape(-1).contiguous()
    return scores.detach().reshape(-1).contiguous(), keep


def _fraction(name: str, value: float | Tensor, scores: Tensor) -> Tensor:
    """Return 0-d fp64 on the scores' device; numbers are checked, bad tensors give NaN later."""
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise W2SError(
                f"{name} has shape {tuple(value.shape)}; expected a number or 0-d tensor"
            )
        return value.detach().to(device=scores.device, dtype=torch.float64)
    if not 0.0 <= value <= 1.0:
        raise W2SError(f"{name} is {value}; expected a number in [0, 1]")
    return torch.full((), value, dtype=torch.float64, device=scores.device)


_SCHEMAS = (
    "quantile(Tensor scores, Tensor q, Tensor? keep) -> Tensor",
    "kth_value(Tensor scores, Tensor rank, Tensor? keep) -> Tensor",
    "top_mask(Tensor scores, Tensor fraction, Tensor? keep) -> Tensor",
)
for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(LIBRARY, "quantile", "CompositeExplicitAutograd")
def _quantile(scores: Tensor, q: Tensor, keep: Tensor | None) -> Tensor:
    return backend("quantile", scores).quantile(scores.contiguous(), q, _contiguous(keep))


@torch.library.impl(LIBRARY, "kth_value", "CompositeExplicitAutograd")
def _kth_value(scores: Tensor, rank: Tensor, keep: Tensor | None) -> Tensor:
    return backend("quantile", scores).kth_value(scores.contiguous(), rank, _contiguous(keep))


@torch.library.impl(LIBRARY, "top_mask", "CompositeExplicitAutograd")
def _top_mask(scores: Tensor, fraction: Tensor, keep: Tensor | None) -> Tensor:
    kernels, x, keep = backend("quantile", scores), scores.contiguous(), _contiguous(keep)
    n_kept = torch.full((), x.numel(), dtype=torch.int64, device=x.device)
    if keep is not None:
        n_kept = keep.sum()
    count = distributed.top_count(fraction, n_kept)
    at = kernels.kth_value(x, n_kept - count, keep)  # NaN if the count is 0: an empty mask
    return kernels.threshold_mask(x, keep, at, count - kernels.count_at(x, keep, at)[0])


def _contiguous(keep: Tensor | None) -> Tensor | None:
    return None if keep is None else keep.contiguous()


for _name in ("quantile", "kth_value", "top_mask"):
    sample_by_sample(_name)


@torch.library.register_fake("w2s_fast::quantile")
@torch.library.register_fake("w2s_fast::kth_value")
def _fake(scores: Tensor, at: Tensor, keep: Tensor | None) -> Tensor:
    acc = accumulator(scores.dtype)
    return scores.new_empty((), dtype=acc)


@torch.library.register_fake("w2s_fast::top_mask")
def _fake_mask(scores: Tensor, fraction: Tensor, keep: Tensor | None) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def sample(n: int, v: int, dtype: torch.dtype, device: str, seed: int) -> dict[str, object]:
    """Return scores with many ties, a few infinities and a mask. ``v`` is not used."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, generator=g).mul(4).round().div(4)
    scores[torch.rand(n, generator=g) < 0.01] = float("inf")
    keep = torch.rand(n, generator=g) < 0.9
    keep[0] = True
    q = torch.rand((), generator=g, dtype=torch.float64)
    return {
        "scores": scores.to(dtype).to(device),
        "q": q.to(device),
        "keep": keep.to(device),
    }


def cost(n: int, v: int, dtype: torch.dtype) -> Cost:
    """Return the cost: one read of the scores."""
    return Cost(bytes=n * dtype.itemsize, flops=n)


OP = Op("quantile", ref.quantile, sample, cost)
