"""Losses that are one call of the fused op: weak labels, and options of ``ops.weak_loss``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from w2s_fast.losses._base import Loss, LossContext, LossOut


@dataclass(frozen=True, kw_only=True)
class OneCallLoss(Loss):
    """Base of these losses. A new one overrides ``terms``, or nothing for plain cross-entropy.

    Many such losses on the logits of many heads are computed without autograd, see
    ``probing.head_losses``; so ``forward`` is not overridden where ``terms`` will do.
    """

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the labels that the op learns, and its options besides the row weights.

        Without a ``batch_rule``, options do not depend on rows, nor labels on other rows.
        """
        return weak, {}

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``."""
        weak, options = self.terms(logits, weak, ctx)
        return self._fused(logits, weak, ctx, **options)
