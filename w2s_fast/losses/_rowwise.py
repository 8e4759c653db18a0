"""Losses of independent rows that are not a cross-entropy with a constant target, in plain torch.

The fused op differentiates a cross-entropy whose target is detached. Losses whose gradient goes
through the student's own probabilities elsewhere are computed here: log-probabilities in fp32
(fp64 for fp64 logits), autograd, memory of a few (n, C) tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import (
    Loss,
    LossContext,
    LossOut,
    check_labels,
    one_hot,
    some_rows,
    summed_metrics,
)
from w2s_fast.ops.checks import check_weight
from w2s_fast.ops.lazy_logits import dense
from w2s_fast.ops.targets import check_logits

_LOG_ZERO = -1e5  # p is 0 from far above it on


class Rows(NamedTuple):
    """Losses of n rows."""

    loss: Tensor  # (n,), times the row weight; 0 in rows that do not count
    log_p: Tensor  # (n, C) log-probabilities of the student
    mask: Tensor | None  # (n,) bool: the rows that count; None for all


@dataclass(frozen=True, kw_only=True)
class RowLoss(Loss):
    """Base of these losses. A new one overrides ``row_losses``, or ``logit_losses``."""

    def row_losses(self, log_p: Tensor, q: Tensor) -> Tensor:
        """Return (n,) losses of log-probabilities and soft labels, both (n, C) of one dtype."""
        raise TypeError(f"{type(self).__name__} must define row_losses")

    def logit_losses(self, z: Tensor, log_p: Tensor, q: Tensor, ctx: LossContext) -> Tensor:
        """Return (n,) losses of logits, their log-probabilities and soft labels, all (n, C)."""
        return self.row_losses(log_p, q)

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``."""
        check_labels(weak)
        if not weak.is_floating_point():
            return self.hard_forward(logits, weak, ctx)
        return self._summed(self.rows(logits, weak, ctx), weak, ctx)

    def hard_forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``, for hard labels; override where they have a faster way."""
        return self._summed(self.rows(logits, weak, ctx), weak, ctx)

    def rows(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> Rows:
        """Return the weighted losses of rows, with what their statistics are made of."""
        logits = dense(logits)
        check_logits(logits)
        mask = some_rows(weak, ctx.weight)
        acc = torch.promote_types(logits.dtype, torch.float32)
        z = logits.to(acc)
        if mask is not None:  # the logits too, not only the loss: NaN would reach the gradient
            z = torch.where(mask.unsqueeze(1), z, 0.0)
        log_p = z.log_softmax(1)
        loss = self.logit_losses(z, log_p, soft_labels(weak, logits, acc), ctx)
        if ctx.weight is not None:
            weight = ctx.weight.detach().to(acc)
            check_weight(weight)
            loss = loss * weight
        if mask is not None:
            loss = torch.where(mask, loss, 0.0)
        return Rows(loss, log_p, mask)

    def _summed(self, rows: Rows, weak: Tensor, ctx: LossContext) -> LossOut:
        metrics = _metrics(rows.log_p.detach(), weak, rows.mask)
        return LossOut(rows.loss.sum(), self.count(weak, ctx.weight), ctx.state, metrics)


def soft_labels(weak: Tensor, logits: Tensor, acc: torch.dtype) -> Tensor:
    """Return (n, C) class probabilities of hard or soft labels; finite in ignored rows.

    Raises:
        W2SError: if the shapes do not fit, or a hard label is no class.
    """
    expected = tuple(logits.shape) if weak.is_floating_point() else (logits.shape[0],)
    if tuple(weak.shape) != expected:
        hint = "; hard labels must be integers: weak.long()" if weak.dim() == 1 else ""
        raise W2SError(f"weak has shape {tuple(weak.shape)}; expected {expected}{hint}")
    if weak.is_floating_point():
        return weak.detach().to(acc)
    return one_hot(weak, logits.shape[1], acc)


def finite(log_p: Tensor) -> Tensor:
    """Return log-probabilities with a number in the place of log 0, of which 0 times is 0."""
    return log_p.clamp_min(_LOG_ZERO)


def cross_entropy_rows(log_p: Tensor, q: Tensor) -> Tensor:
    """Return (n,) -sum_k q_k log p_k; infinite only where an impossible class has weak mass."""
    return -torch.where(q != 0, q * log_p, 0.0).sum(1)


def _metrics(log_p: Tensor, weak: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    top, p = weak.argmax(1) if weak.is_floating_point() else weak, log_p.exp()
    return summed_metrics(mask, log_p.argmax(1) == top, p.amax(1), torch.special.entr(p).sum(1))
