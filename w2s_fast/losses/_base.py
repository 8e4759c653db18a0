"""Base class of the weak-to-strong losses: a frozen dataclass whose fields are hyper-parameters.

A loss returns a SUM over rows and the normaliser of those rows, never a mean. The training loop
divides once, by the normaliser of the whole optimizer step, so micro-batches and ranks do not
change the result. A loss never synchronises with the device. Memory that outlives one call (a
rolling window of scores) is one explicit tensor that goes in and comes out, so that it can be
checkpointed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._fields import RangeChecked
from w2s_fast.ops.arguments import check_methods
from w2s_fast.ops.checks import check_classes, check_total, check_weight_dtype
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.results import WeakLossOut
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.weak_loss import batch_threshold, weak_loss

IGNORE = -100
# Classes that ``logits`` and ``weak`` may have besides Tensor.
_ACCEPT: dict[str, tuple[type, ...]] = {"logits": (Projected,), "weak": (SparseTargets,)}


class LossContext(NamedTuple):
    """Everything that a loss may depend on besides logits and weak labels.

    Attributes:
        weight: (n,) row weights; 0 takes a row out of the loss and of every statistic.
        step_frac: optimizer step / total steps, in [0, 1).
        step: optimizer step, for schedules that count steps.
        threshold: value of ``Loss.threshold`` over more rows than these; None: over these rows.
        state: from the call before, or ``Loss.init_state``.
        gold: (n,) int64 true classes, -100 where there is none: read by ``ExplicitConflict`` alone,
            which simulates an objective against them.
    """

    weight: Tensor | None = None
    step_frac: float = 0.0
    step: int | None = None
    threshold: Tensor | None = None
    state: Tensor | None = None
    gold: Tensor | None = None


class LossOut(NamedTuple):
    """Result of one call over n rows.

    Attributes:
        loss_sum: 0-d, differentiable with respect to the logits, SUM of weighted row losses.
        count: 0-d normaliser of these rows, ``Loss.count``.
        state: explicit state for the next call, or None.
        metrics: detached 0-d SUMS over the rows that count: ``agreement`` (the student's class is
            the weak one), ``max_prob``, ``entropy`` (nats). Divide by ``rows``, their number.
        threshold: detached 0-d threshold that rows were hardened with: P(class 0) for two classes,
            else a top probability. None without one.
    """

    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count
    state: Tensor | None
    metrics: dict[str, Tensor]
    threshold: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Loss(RangeChecked):
    """Base of all losses. A new loss overrides ``forward``, and the hooks it needs.

    ``weak`` is int64 (n,) hard labels (-100 takes a row out) or floating point (n, C) soft labels;
    ``logits`` is (n, C) in fp32, bf16, fp16 or fp64 and the only argument that gets a gradient. Row
    weights are constants, other than those of ``w2s_fast.cross_entropy``.
    """

    def __init_subclass__(cls) -> None:
        """Check the arguments of overridden methods; refuse one that is not to be overridden."""
        if "__call__" in cls.__dict__:
            raise W2SError(
                f"{cls.__name__} defines __call__; a loss defines forward(self, logits, weak, ctx) "
                "with a LossContext as ctx"
            )
        check_methods(cls, ("threshold",), **_ACCEPT)

    def __call__(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        step_frac: float = 0.0,
        step: int | None = None,
        threshold: Tensor | None = None,
        state: Tensor | None = None,
        gold: Tensor | None = None,
    ) -> LossOut:
        """Compute the sum of the row losses.

        Args:
            logits, weak: see the class.
            weight, step_frac, step, threshold, state, gold: see ``LossContext``.
        """
        if weight is not None and weight.requires_grad:
            weight = weight.detach()
        _check_rows(logits, weak)
        ctx = LossContext(weight, step_frac, step, threshold, state, gold)
        return self.forward(logits, weak, ctx)

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """Compute the sum of the row losses; what a new loss overrides."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def init_state(self) -> Tensor | None:
        """Return the state before the first step; None for a loss without memory."""
        return None

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        """Return the self-target coefficient at this step; 0 for losses without one.

        Args:
            step_frac: optimizer step / total steps.
            step: optimizer step, for schedules that count steps.
        """
        return 0.0

    def batch_rule(self, n_classes: int) -> str | None:
        """Name the batch statistic the loss hardens with; None if rows are independent."""
        return None

    def threshold(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """Compute the exact batch statistic, 0-d in SCORE units; None without a ``batch_rule``.

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
        """Return the state after these rows, as ``__call__`` over all of them would."""
        return state

    def count(self, weak: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the 0-d normaliser: the weights of the rows that count, or their number.

        It depends on the targets alone, so an optimizer step knows it before its first forward.
        """
        _check_weight(weak, weight)
        mask, first = _label_mask(weak), _first_of(weak)
        if weight is None:
            if mask is not None:
                return mask.sum(dtype=torch.float32)
            return torch.full((), first.shape[0], dtype=torch.float32, device=first.device)
        weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        total = (weight if mask is None else torch.where(mask, weight, 0.0)).sum()
        check_total(total)
        return total

    def _fused(self, logits: Tensor, weak: Tensor, ctx: LossContext, **options: Any) -> LossOut:
        """Run the fused op and pack its results."""
        out = weak_loss(
            logits, weak, weight=ctx.weight, ignore_index=IGNORE, return_sums=True, **options
        )
        metrics = fused_metrics(out, weak, ctx.weight)
        return LossOut(out.loss, self.count(weak, ctx.weight), ctx.state, metrics, out.threshold)


check_methods(Loss, ("__call__", "threshold"), **_ACCEPT)


def row_mask(weak: Tensor | SparseTargets, weight: Tensor | None) -> Tensor:
    """Return (n,) bool: the rows that count."""
    mask = some_rows(weak, weight)
    if mask is None:
        first = _first_of(weak)
        return torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
    return mask


def some_rows(weak: Tensor | SparseTargets, weight: Tensor | None) -> Tensor | None:
    """Return (n,) bool: the rows that count; None where the arguments show that all of them do."""
    _check_weight(weak, weight)
    mask = _label_mask(weak)
    if weight is None:
        return mask
    return weight != 0 if mask is None else mask & (weight != 0)


def _first_of(weak: Tensor | SparseTargets) -> Tensor:
    return weak.ids if isinstance(weak, SparseTargets) else weak


def _label_mask(weak: Tensor | SparseTargets) -> Tensor | None:
    """Return (n,) bool: the rows with a label; None for soft labels, which every row has."""
    if isinstance(weak, SparseTargets) or weak.is_floating_point():
        return None
    return weak != IGNORE


def _check_rows(logits: Tensor, weak: Tensor | SparseTargets) -> None:
    n = logits.shape[:1]
    if isinstance(weak, Tensor) and weak.dim() == 1 and weak.shape != n:
        raise W2SError(f"weak (hard labels) has shape {tuple(weak.shape)}; expected {tuple(n)}")


def _check_weight(weak: Tensor | SparseTargets, weight: Tensor | None) -> None:
    if weight is None:
        return
    n = _first_of(weak).shape[:1]
    if weight.shape != n:
        raise W2SError(
            f"weight has shape {tuple(weight.shape)}; expected {tuple(n)}, one number a row"
        )
    check_weight_dtype(weight)


def check_labels(weak: Tensor) -> None:
    """Raise ``W2SError`` for targets that are neither hard labels nor dense soft labels."""
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


def one_hot(weak: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    """Return (n, C) probabilities of hard labels (n,); 0 in ignored rows.

    Raises:
        W2SError: a label is no class; on a device, where the host cannot see it, its row is NaN.
    """
    check_classes(weak, n_classes, IGNORE)
    classes = torch.arange(n_classes, device=weak.device)  # F.one_hot is no operation of vmap
    label = weak.unsqueeze(-1)
    found = (label == classes).to(dtype)
    if weak.device.type == "cpu" and not torch.compiler.is_compiling():
        return found
    known = (label == IGNORE) | ((label >= 0) & (label < n_classes))
    return torch.where(known, found, float("nan"))


def p_class1(weak: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (n,) weak P(class 1) of two-class labels, hard or soft."""
    check_labels(weak)
    if not weak.is_floating_point():
        return one_hot(weak, 2, dtype)[:, 1]
    if weak.shape[1] != 2:
        raise W2SError(
            f"weak has shape {tuple(weak.shape)}; expected ({len(weak)}, 2), soft labels of two "
            "classes"
        )
    return weak[:, 1].to(dtype)


def fused_metrics(out: WeakLossOut, weak: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
    """Make ``LossOut.metrics`` from the statistics of the fused op; empty if it kept none."""
    if out.sums is not None:
        return out.sums._asdict()
    stats = out.stats
    if stats is None:
        return {}
    mask = some_rows(weak, weight)
    return summed_metrics(mask, stats.agreement, stats.max_prob, stats.entropy)


def summed_metrics(
    mask: Tensor | None, agreement: Tensor, max_prob: Tensor, entropy: Tensor
) -> dict[str, Tensor]:
    """Sum per-row statistics, all (n,), over the rows in ``mask``, None for all of them.

    See ``LossOut.metrics``.
    """
    acc = max_prob.dtype
    if mask is None:
        return {
            "rows": max_prob.new_full((), len(max_prob)),
            "agreement": agreement.sum(dtype=acc),
            "max_prob": max_prob.sum(),
            "entropy": entropy.sum(),
        }
    return {
        "rows": mask.sum(dtype=acc),
        "agreement": (agreement & mask).sum(dtype=acc),
        "max_prob": torch.where(mask, max_prob, 0.0).sum(),
        "entropy": torch.where(mask, entropy, 0.0).sum(),
    }
