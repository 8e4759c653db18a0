"""Every term of the weak-to-strong cross-entropy in one call, for the classes of the losses.

The formula is in ``cross_entropy/api.py``. Logits are a tensor, or lazy: hidden states and head.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.cross_entropy import algorithm
from w2s_fast.ops.cross_entropy.autograd import differentiable_loss
from w2s_fast.ops.fused_linear.cross_entropy import projected_loss, projected_threshold
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.loss_call import LossSpec
from w2s_fast.ops.results import (
    StatSums,
    WeakLossOut,
    as_scalar,
    shown_threshold,
    with_stats,
)
from w2s_fast.ops.targets import SparseTargets, make_inputs
from w2s_fast.ops.transforms import constant, outside_transforms


@checked
def weak_loss(
    logits: Tensor | Projected,
    weak: Tensor | SparseTargets,
    *,
    weight: Tensor | None = None,
    aux: float | Tensor = 0.0,
    rule: str = "none",
    threshold: Tensor | None = None,
    focal_gamma: float = 0.0,
    max_confidence: float = math.inf,
    smoothing: float = 0.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "sum",
    inplace: bool = False,
    return_stats: bool = False,
    return_sums: bool = False,
) -> WeakLossOut:
    """Compute every term of ``cross_entropy``; the classes in ``w2s_fast.losses`` call this.

    Args:
        logits, weak, weight, aux, ignore_index, reduction, inplace, return_stats: see
            ``cross_entropy``. ``Projected`` logits are never stored, and have their own softcap.
        rule: ``none``, ``prior``, ``median``, ``argmax`` or ``fixed``.
        threshold: 0-d tensor in SCORE units (two classes: margin z_0 - z_1; more: top
            probability; rule ``prior`` of more than two classes: class bias (V,)) that replaces the
            statistic of this batch, from ``batch_threshold`` over a larger one.
        focal_gamma: r_i = (1 - p_i,c)^gamma, c the weak label's top class; detached.
        max_confidence: r_i = 0 on rows whose top probability is at least this.
        smoothing, softcap, z_loss: see ``cross_entropy``.
        return_sums: the caller reads nothing of the row statistics but ``StatSums``. Where the
            loss's own kernel adds them up they are in ``sums``, else ``stats`` has every row.

    Returns:
        ``WeakLossOut``; ``count`` is the 0-d normaliser Z.
    """
    if isinstance(threshold, Tensor):
        threshold = threshold.clone()  # the caller's may have moved when backward reads it
    spec = LossSpec(
        rule, aux, threshold, smoothing, focal_gamma, max_confidence, softcap, z_loss,
        record=return_stats or return_sums,
    )  # fmt: skip
    if isinstance(logits, Projected):
        return projected_loss(logits, weak, weight, spec, ignore_index, reduction)
    spec.entropy = spec.record
    p = make_inputs(logits, weak, weight, ignore_index, solves=True)
    if return_sums and not return_stats and algorithm.sums_in_one_call(p, spec):
        spec.record, spec.sums = False, True
    loss, result = differentiable_loss(p, spec, logits, weight, reduction, inplace)
    if result.sums is None and (return_stats or return_sums):
        return with_stats(loss, p, result)
    sums = None if result.sums is None else StatSums(*result.sums.unbind())
    at = None if sums is None else shown_threshold(p, result)
    return WeakLossOut(loss, as_scalar(result.normaliser, p), None, sums, at)


@checked
def batch_threshold(
    logits: Tensor | Projected,
    weak: Tensor | SparseTargets,
    rule: str,
    *,
    weight: Tensor | None = None,
    softcap: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Compute the threshold of ``rule`` (``prior`` or ``median``) over these rows, in SCORE units.

    0-d; for rule ``prior`` of more than two classes the class bias (V,) of ``balanced_bias``.
    """
    logits, weak, weight = _constants(logits, weak, weight)
    with outside_transforms():
        return _batch_threshold(logits, weak, rule, weight, softcap, ignore_index)


def _batch_threshold(
    logits: Tensor | Projected,
    weak: Tensor | SparseTargets,
    rule: str,
    weight: Tensor | None,
    softcap: float,
    ignore_index: int,
) -> Tensor:
    if isinstance(logits, Projected):
        return projected_threshold(logits, weak, rule, weight, ignore_index)
    p = make_inputs(logits, weak, weight, ignore_index)
    algorithm.check_spec(LossSpec(rule, softcap=softcap), p, algorithm.BALANCED_CLASSES)
    if rule not in algorithm.BATCH_RULES:
        raise W2SError(f"rule {rule!r} has no batch statistic; expected 'prior' or 'median'")
    return algorithm.batch_threshold(p, rule, softcap=softcap)


def _constants(logits: Any, weak: Any, weight: Tensor | None) -> tuple[Any, Any, Any]:
    """Detach the inputs of a batch statistic, which has no derivative."""

    def plain(x: Any) -> Any:
        if isinstance(x, Tensor):
            return constant("batch_threshold", x)
        if isinstance(x, SparseTargets):
            return SparseTargets(*map(plain, x))
        if isinstance(x, Projected):
            parts = {name: plain(getattr(x, name)) for name in ("hidden", "weight", "bias")}
            return replace(x, **parts)
        return x

    return plain(logits), plain(weak), plain(weight)
