"""Every term of the weak-to-strong cross-entropy as one call: what the losses are made of.

The formula stands in ``cross_entropy/api.py``. Logits come as a tensor, or as the hidden states and
head that would make them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.cross_entropy import algorithm as _solve
from w2s_fast.ops.cross_entropy.algorithm import Request
from w2s_fast.ops.cross_entropy.api import run
from w2s_fast.ops.fused_linear.cross_entropy import projected_loss, projected_threshold
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.results import WeakLossOut, as_scalar, make_stats
from w2s_fast.ops.targets import SparseTargets, make_problem
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
) -> WeakLossOut:
    """Every term of ``cross_entropy``; what the classes in ``w2s_fast.losses`` are made of.

    Args:
        logits, weak, weight, aux, ignore_index, reduction, inplace, return_stats: see
            ``cross_entropy``. ``Projected`` logits are never stored, and bring their own softcap.
        rule: ``none``, ``prior``, ``median``, ``argmax`` or ``fixed``.
        threshold: 0-d tensor in SCORE units (two classes: margin z_0 - z_1; more: top
            probability; rule ``prior`` of more than two classes: class bias (V,)) that replaces the
            statistic of this batch, from ``batch_threshold`` over a larger one.
        focal_gamma: r_i = (1 - p_i,c)^gamma, c the weak label's top class; detached.
        max_confidence: r_i = 0 on rows whose top probability is at least this.
        smoothing, softcap, z_loss: see ``cross_entropy``.

    Returns:
        ``WeakLossOut``; ``count`` is the 0-d normaliser Z.
    """
    request = Request(
        rule, aux, threshold, smoothing, focal_gamma, max_confidence, softcap, z_loss, return_stats
    )
    if isinstance(logits, Projected):
        return projected_loss(logits, weak, weight, request, ignore_index, reduction)
    p = make_problem(logits, weak, weight, ignore_index)
    loss, solution = run(p, request, logits, weight, reduction, inplace)
    stats = make_stats(p, solution) if return_stats else None
    return WeakLossOut(loss, as_scalar(solution.normaliser, p), stats)


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
    """Threshold in SCORE units: ``rule`` (``prior`` or ``median``) exactly over these rows.

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
    p = make_problem(logits, weak, weight, ignore_index)
    _solve.check_request(_solve.Request(rule, softcap=softcap), p, _solve.BALANCED_CLASSES)
    if rule not in ("prior", "median"):
        raise W2SError(f"rule {rule!r} has no batch statistic; expected 'prior' or 'median'")
    return _solve.batch_threshold(p, rule, softcap=softcap)


def _constants(logits: Any, weak: Any, weight: Tensor | None) -> tuple[Any, Any, Any]:
    """The inputs of a batch statistic, which has no derivative."""

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
