"""Losses of each row alone that are no cross-entropy against a constant, in plain torch.

The fused op differentiates a cross-entropy whose target is detached. What pushes the gradient
through the student's own probabilities elsewhere goes this way: log-probabilities in fp32 (fp64
for fp64 logits), autograd, memory of a few (n, C) tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import Loss, LossOut, check_labels, kept_rows
from w2s_fast.ops.lazy_logits import dense


@dataclass(frozen=True, kw_only=True)
class RowLoss(Loss):
    """Base of these losses. A new one overrides ``rows``."""

    def rows(self, log_p: Tensor, q: Tensor) -> Tensor:
        """(n,) row losses of log-probabilities and soft labels, both (n, C), in one precision."""
        raise TypeError(f"{type(self).__name__} must define rows")

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
        """See ``Loss.__call__``."""
        check_labels(weak)
        logits = dense(logits)
        kept = kept_rows(weak, weight)
        acc = torch.promote_types(logits.dtype, torch.float32)
        # A row that is out must not pass on a NaN, so its logits are replaced, not its loss alone.
        log_p = torch.where(kept.unsqueeze(1), logits.to(acc), 0.0).log_softmax(1)
        loss = self.rows(log_p, soft_labels(weak, logits, acc))
        if weight is not None:
            loss = loss * weight.detach().to(acc)
        total = torch.where(kept, loss, 0.0).sum()
        metrics = _metrics(log_p.detach(), weak, kept)
        return LossOut(total, self.count(weak, weight), state, metrics)


def soft_labels(weak: Tensor, logits: Tensor, acc: torch.dtype) -> Tensor:
    """(n, C) class probabilities of hard or soft labels; of ignored rows something finite.

    Raises:
        W2SError: if the shapes do not fit.
    """
    wanted = tuple(logits.shape) if weak.is_floating_point() else (logits.shape[0],)
    if tuple(weak.shape) != wanted:
        hint = "; hard labels must be integers: weak.long()" if weak.dim() == 1 else ""
        raise W2SError(f"weak has shape {tuple(weak.shape)}; expected {wanted}{hint}")
    if weak.is_floating_point():
        return weak.detach().to(acc)
    return F.one_hot(weak.clamp_min(0), logits.shape[1]).to(acc)


def _metrics(log_p: Tensor, weak: Tensor, kept: Tensor) -> dict[str, Tensor]:
    acc, p = log_p.dtype, log_p.exp()
    top = weak.argmax(1) if weak.is_floating_point() else weak
    return {
        "rows": kept.sum(dtype=acc),
        "agreement": ((log_p.argmax(1) == top) & kept).sum(dtype=acc),
        "max_prob": torch.where(kept, p.amax(1), 0.0).sum(),
        "entropy": torch.where(kept, torch.special.entr(p).sum(1), 0.0).sum(),
    }
