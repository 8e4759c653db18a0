"""What a loss is: a frozen dataclass whose fields are its hyper-parameters.

A loss returns a SUM over rows and the normaliser of those rows, never a mean: the engine divides
once, by the normaliser of the whole optimizer step, so micro-batches and ranks change nothing. It
never synchronises with the device. Whatever must outlive one call (a rolling window of scores) is
one explicit tensor that goes in and comes out, so it can be checkpointed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import check_methods, check_number
from w2s_fast.ops.checks import check_weight_dtype
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.results import WeakLossOut
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.weak_loss import batch_threshold, weak_loss

IGNORE = -100
# What a loss takes beside tensors.
_ACCEPT: dict[str, tuple[type, ...]] = {"logits": (Projected,), "weak": (SparseTargets,)}


class LossOut(NamedTuple):
    """What one call over n rows gives back.

    Attributes:
        loss_sum: 0-d, differentiable with respect to the logits, SUM of weighted row losses.
        count: 0-d normaliser of these rows, ``Loss.count``.
        state: explicit state for the next call, or None.
        metrics: detached 0-d SUMS over the rows that count: ``agreement`` (the student's class is
            the weak one), ``max_prob``, ``entropy`` (nats). Divide by ``rows``, their number.
    """

    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is of no use here
    state: Tensor | None
    metrics: dict[str, Tensor]


_CHECKED = ("__call__", "threshold")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Base of all losses. A new one overrides ``__call__``, and the hooks it needs.

    ``weak`` is int64 (n,) hard labels (-100 takes a row out) or floating point (n, C) soft labels;
    ``logits`` is (n, C) in fp32, bf16, fp16 or fp64 and the only argument that gets a gradient.
    ``frac`` is the optimizer step over the number of steps, in [0, 1).
    """

    def __init_subclass__(cls) -> None:
        """Check what every call is given, see ``checked``."""
        check_methods(cls, _CHECKED, **_ACCEPT)

    def init_state(self) -> Tensor | None:
        """State before the first step; None for a loss without memory."""
        return None

    def coefficient(self, frac: float, step: int | None = None) -> float:
        """Self-target coefficient at this point of training; 0 for losses without one.

        Args:
            frac: optimizer step / total steps.
            step: optimizer step, for schedules that count steps.
        """
        return 0.0

    def batch_rule(self, n_classes: int) -> str | None:
        """Name of the batch statistic the loss hardens with; None if rows are independent."""
        return None

    def threshold(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """Exact statistic over the rows given, 0-d in SCORE units; None without a ``batch_rule``.

        Pass it to ``__call__`` for each part of these rows and the parts add up to the whole.
        """
        rule = self.batch_rule(logits.shape[1])
        return None if rule is None else batch_threshold(logits, weak, rule, weight=weight)

    def advance(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """The state after these rows: what ``__call__`` over all of them gives as ``state``."""
        return state

    def count(self, weak: Tensor, weight: Tensor | None = None) -> Tensor:
        """0-d normaliser of these rows: the weights of the rows that count, or their number.

        It depends on the targets alone, so an optimizer step knows it before its first forward.
        """
        kept = kept_rows(weak, weight)
        if weight is None:
            return kept.sum(dtype=torch.float32)
        acc = torch.promote_types(weight.dtype, torch.float32)
        return torch.where(kept, weight.detach().to(acc), 0.0).sum()

    def __call__(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        frac: float = 0.0,
        step: int | None = None,
        threshold: Tensor | None = None,
        state: Tensor | None = None,
    ) -> LossOut:
        """Sum of the row losses.

        Args:
            logits, weak: see the class.
            weight: (n,) row weights; 0 takes a row out of the loss and of every statistic.
            frac, step: where in training this is, see ``coefficient``.
            threshold: from ``threshold``, over more rows than these; None: over these rows.
            state: from the call before, or ``init_state``.
        """
        raise TypeError(f"{type(self).__name__} must define __call__")

    def _sum(
        self,
        logits: Tensor,
        weak: Tensor,
        weight: Tensor | None,
        state: Tensor | None = None,
        **knobs: Any,
    ) -> LossOut:
        """Run the fused op and pack its answer."""
        out = weak_loss(
            logits, weak, weight=weight, ignore_index=IGNORE, return_stats=True, **knobs
        )
        return LossOut(out.loss, self.count(weak, weight), state, fused_metrics(out, weak, weight))

    def _check(self, name: str, low: float, high: float = math.inf) -> None:
        """Raise ``W2SError`` unless field ``name`` is a number in [low, high]."""
        value = getattr(self, name)
        check_number(f"{type(self).__name__}: {name}", value)
        if not low <= value <= high:
            span = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise W2SError(f"{type(self).__name__}: {name} is {value}; expected a number {span}")


check_methods(Loss, _CHECKED, **_ACCEPT)


def kept_rows(weak: Tensor | SparseTargets, weight: Tensor | None) -> Tensor:
    """(n,) bool: rows that count."""
    n = (weak.ids if isinstance(weak, SparseTargets) else weak).shape[:1]
    if weight is not None and weight.shape != n:
        raise W2SError(
            f"weight has shape {tuple(weight.shape)}; expected {tuple(n)}, one number a row"
        )
    if weight is not None:
        check_weight_dtype(weight)
    if isinstance(weak, SparseTargets):
        kept = torch.ones(weak.ids.shape[0], dtype=torch.bool, device=weak.ids.device)
    elif weak.is_floating_point():
        kept = torch.ones(weak.shape[0], dtype=torch.bool, device=weak.device)
    else:
        kept = weak != IGNORE
    return kept if weight is None else kept & (weight != 0)


def check_labels(weak: Tensor) -> None:
    """Raise ``W2SError`` for labels of which no single class can be taken."""
    if isinstance(weak, SparseTargets):
        raise W2SError(
            "weak is SparseTargets, which this loss cannot take; expected hard labels (n,) or soft "
            "ones (n, C), or use loss 'xent' or 'logconf'"
        )
    if weak.is_floating_point() and weak.dim() != 2:
        raise W2SError(
            f"weak has shape {tuple(weak.shape)} and dtype {weak.dtype}; expected soft labels "
            "(n, C), or hard labels as integers (weak.long())"
        )


def p_class1(weak: Tensor, dtype: torch.dtype) -> Tensor:
    """(n,) weak P(class 1) of two-class labels, hard or soft."""
    check_labels(weak)
    return weak[:, 1].to(dtype) if weak.is_floating_point() else (weak == 1).to(dtype)


def hyper_parameters(loss: type[Loss]) -> tuple[str, ...]:
    """Names of the fields of a loss class."""
    return tuple(f.name for f in fields(loss))


def fused_metrics(out: WeakLossOut, weak: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
    """``LossOut.metrics`` from the by-products of the fused op; none if it kept none."""
    s = out.stats
    if s is None:
        return {}
    kept = kept_rows(weak, weight)
    acc = s.max_prob.dtype
    return {
        "rows": kept.sum(dtype=acc),
        "agreement": (s.agreement & kept).sum(dtype=acc),
        "max_prob": torch.where(kept, s.max_prob, 0.0).sum(),
        "entropy": torch.where(kept, s.entropy, 0.0).sum(),
    }
