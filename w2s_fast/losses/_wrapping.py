"""Base of losses around another loss, which keeps its schedule, state and batch statistic."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses._base import Loss


@dataclass(frozen=True, kw_only=True)
class WrappingLoss(Loss):
    """Forward every hook to ``loss``. A new one overrides ``forward``.

    Attributes:
        loss: the loss inside.
    """

    loss: Loss

    def inner_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of the loss inside; override where they are computed from these."""
        return logits

    def init_state(self) -> Tensor | None:
        """See ``Loss.init_state``."""
        return self.loss.init_state()

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        """See ``Loss.coefficient``."""
        return self.loss.coefficient(step_frac, step)

    def batch_rule(self, n_classes: int) -> str | None:
        """See ``Loss.batch_rule``."""
        return self.loss.batch_rule(n_classes)

    def threshold(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """See ``Loss.threshold``; in units of the scores of the loss inside."""
        z = self.inner_logits(logits)
        return self.loss.threshold(z, weak, weight=weight, state=state)

    def advance(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """See ``Loss.advance``."""
        z = self.inner_logits(logits)
        return self.loss.advance(z, weak, weight=weight, state=state)

    def count(self, weak: Tensor, weight: Tensor | None = None) -> Tensor:
        """See ``Loss.count``."""
        return self.loss.count(weak, weight)
