r"""Hard labels whose class counts are prescribed: the quantile threshold for more than two classes.

    hard_i = argmax_k (z_ik + b_k)   with   #{i : hard_i = k} = c_k,   sum_k c_k = N

Of all labelings with these counts it is the one with the largest sum of logits,

    max_h sum_i z_{i, h_i}   subject to the counts,

and b are the dual prices of that transportation problem: with them every row takes its largest
entry. c = N * prior, rounded to integers of the same sum (largest remainders, lower class first).

Two classes keep the rule of ``quantile``, ties included: class 0 iff z_0 - z_1 >= t with t the
quantile at prior_1, so b_1 - b_0 = t, and class 1 gets ceil(prior_1 (N - 1)) rows.

Guarantees for more classes. Counts are always exact; rows that tie are split by their order. On CPU
the labeling is optimal, and it is the argmax of z + b for every row without a tie; b has the
largest margin to every row's decision that all rows can have at once. On other devices nothing
waits for the host, so the number of steps is fixed: if it was too small, rows near a boundary
differ from the argmax of z + b, and the sum of logits is the largest except for them.

Source: the multi-class form of the confidence loss's class prior (Burns et al. 2023, Eq. 1);
transportation duality, e.g. Peyre and Cuturi 2019, "Computational Optimal Transport", ch. 3 and 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.checks import check_dense
from w2s_fast.ops.dispatch import LIBRARY, backend
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.quantile.api import masked_quantile
from w2s_fast.ops.transforms import sample_by_sample, values


class Balanced(NamedTuple):
    """Bias (K,) and labels (N,) int64; rows that do not count have the argmax of z + b."""

    bias: Tensor
    hard: Tensor


@checked
def balanced_bias(logits: Tensor, prior: Tensor, *, keep: Tensor | None = None) -> Balanced:
    """Compute class bias and hard labels with the class counts of ``prior``.

    Args:
        logits: (N, K) floating point scores, K >= 2; detached. No sum of finite ones outweighs an
            infinite one. Rows with NaN are excluded.
        prior: (K,) non-negative class frequencies; they are normalised. On CUDA a negative
            value counts as 0, and a sum of 0 as equal frequencies.
        keep: (N,) bool: rows that count; None for all.

    Returns:
        ``Balanced``: bias (K,), of mean 0, fp64 for fp64 logits, else fp32; hard (N,) int64.

    Raises:
        W2SError: for shapes and dtypes that do not fit, or on CPU a prior that is negative, not
            finite or all 0.
    """
    check_dense("logits", logits)
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise W2SError(
            f"logits have shape {tuple(logits.shape)} and dtype {logits.dtype}; expected floating "
            "point (N, K) with K >= 2"
        )
    k = logits.shape[1]
    if prior.shape != (k,) or not prior.is_floating_point() or prior.device != logits.device:
        raise W2SError(
            f"prior has shape {tuple(prior.shape)}, dtype {prior.dtype} and device {prior.device}; "
            f"expected floating point ({k},) on {logits.device}"
        )
    if keep is not None and (keep.shape != logits.shape[:1] or keep.dtype != torch.bool):
        raise W2SError(
            f"keep has shape {tuple(keep.shape)} and dtype {keep.dtype}; expected bool "
            f"({logits.shape[0]},)"
        )
    compiling = torch.compiler.is_compiling()
    if prior.device.type == "cpu" and not compiling and not _is_prior(prior):
        raise W2SError(f"prior is {prior.tolist()}; expected non-negative numbers, not all 0")
    return Balanced(*torch.ops.w2s_fast.balanced_bias(logits.detach(), prior.detach(), keep))


def _is_prior(prior: Tensor) -> bool:
    prior = values(prior)
    return bool(prior.isfinite().all() & (prior >= 0).all() & (prior.sum() > 0))


def class_counts(prior: Tensor, n: Tensor) -> Tensor:
    """Return (K,) int64 counts of sum n: n * prior (K,), rounded by largest remainders."""
    prior = torch.where(prior > 0, prior, 0.0).to(torch.float64)
    total = prior.sum()
    share = torch.where(total > 0, prior / total, 1.0 / prior.numel()) * n
    whole = share.floor()
    # How many classes have a larger remainder, or the same one and a lower index.
    left, order = share - whole, torch.arange(prior.numel(), device=prior.device)
    ahead = (left > left.unsqueeze(1)) | (
        (left == left.unsqueeze(1)) & (order < order.unsqueeze(1))
    )
    return (whole + (ahead.sum(1) < n - whole.sum())).long()


LIBRARY.define(
    "balanced_bias(Tensor logits, Tensor prior, Tensor? keep) -> (Tensor bias, Tensor hard)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(LIBRARY, "balanced_bias", "CompositeExplicitAutograd")
def _balanced_bias(logits: Tensor, prior: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    acc = accumulator(logits.dtype)
    z = logits.to(acc)
    counted = ~z.isnan().any(1)
    if keep is not None:
        counted = counted & keep
    z = _finite(z, counted)
    if z.shape[1] == 2:
        return _two_classes(z, prior, counted)
    counts = class_counts(prior, counted.sum())
    bias, hard = backend("balanced", z).solve(z, counts, counted)
    bias = bias.to(acc)
    return bias, torch.where(counted, hard, (z + bias).argmax(1))


def _finite(z: Tensor, counted: Tensor) -> Tensor:
    """Replace infinities by numbers that outweigh all differences of finite logits together.

    No larger numbers: sums of costs must keep the digits of the others.
    """
    finite = z.isfinite() & counted.unsqueeze(1)
    if not z.numel():
        return z
    low = torch.where(finite, z, torch.inf).amin()
    high = torch.where(finite, z, -torch.inf).amax()
    low, high = (torch.where(x.isfinite(), x, 0.0) for x in (low, high))
    most = torch.finfo(z.dtype).max
    beyond = ((counted.sum() + 1) * (high - low + 1)).clamp_max(most / 8)  # differences are numbers
    above, below = (high + beyond).clamp_max(most), (low - beyond).clamp_min(-most)
    z = torch.where(z == torch.inf, above, z)
    z = torch.where(z == -torch.inf, below, z)
    return torch.where(z.isnan(), 0.0, z)


@torch.library.register_fake("w2s_fast::balanced_bias")
def _fake(logits: Tensor, prior: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    acc = accumulator(logits.dtype)
    return (
        logits.new_empty(prior.shape, dtype=acc),
        logits.new_empty(logits.shape[:1], dtype=torch.int64),
    )


sample_by_sample("balanced_bias")


def _two_classes(z: Tensor, prior: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    prior = torch.where(prior > 0, prior, 0.0).double()
    total = prior.sum()
    q = torch.where(total > 0, prior[1] / total, 0.5)
    margin = z[:, 0] - z[:, 1]
    at = masked_quantile(margin, q, counted)
    at = torch.where(at.isfinite(), at, 0.0)  # nothing counted: no bias
    return torch.stack([-at / 2, at / 2]), torch.where(margin >= at, 0, 1)
