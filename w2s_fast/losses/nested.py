r"""A loss of classifiers whose head reads prefixes of the features: the sum over prefixes.

    L_i = sum_p a_p l(z_ip, q_i),      z_ip = x_i[:m_p] W[:, :m_p]^T + b

l is any loss of weak labels. Each prefix has its own batch threshold and state, as if it were
trained alone. ``models.classifier.PrefixHead`` returns z_i1, ..., z_iP beside each other.

Source: Kusupati et al. 2022, "Matryoshka representation learning" (arXiv 2205.13147), with the tied
classifier of their MRL-E; KaLM-Embedding-V2 (arXiv 2506.20923).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import Loss, LossContext, LossOut
from w2s_fast.losses._wrapping import WrappingLoss
from w2s_fast.losses.xent import Xent


@dataclass(frozen=True, kw_only=True)
class Nested(WrappingLoss):
    """The weighted sum of a loss over P prefixes; logits (n, P C).

    Metrics, and the threshold of a log, are those of the last prefix.

    Attributes:
        loss: the loss of each prefix.
        weights: (P,) a_p, finite and at least 0, the last above 0.
    """

    loss: Loss = field(default_factory=Xent)
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        positive = bool(self.weights) and self.weights[-1] > 0
        if not positive or not all(math.isfinite(a) and a >= 0 for a in self.weights):
            raise W2SError(
                f"Nested: weights is {self.weights}; expected a finite number of at least 0 for "
                "each prefix, the last above 0"
            )

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``."""
        outs = [
            self.loss.forward(z, weak, ctx._replace(threshold=threshold, state=state))
            for z, threshold, state in zip(
                self._parts(logits),
                self._rows(ctx.threshold),
                self._rows(ctx.state),
                strict=True,
            )
        ]
        terms = [a * out.loss_sum for a, out in zip(self.weights, outs, strict=True)]
        states = [out.state for out in outs]
        return outs[-1]._replace(loss_sum=torch.stack(terms).sum(), state=_stacked(states))

    def init_state(self) -> Tensor | None:
        """See ``Loss.init_state``; (P, ...)."""
        return _stacked([self.loss.init_state() for _ in self.weights])

    def threshold(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """See ``Loss.threshold``; (P, ...), those of every prefix."""
        return _stacked(
            [
                self.loss.threshold(z, weak, weight=weight, state=own)
                for z, own in zip(self._parts(logits), self._rows(state), strict=True)
            ]
        )

    def advance(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """See ``Loss.advance``."""
        return _stacked(
            [
                self.loss.advance(z, weak, weight=weight, state=own)
                for z, own in zip(self._parts(logits), self._rows(state), strict=True)
            ]
        )

    def _parts(self, logits: Tensor) -> list[Tensor]:
        """Return the logits (n, C) of every prefix."""
        n = len(self.weights)
        if logits.dim() != 2 or logits.shape[1] % n:
            raise W2SError(
                f"logits have shape {tuple(logits.shape)}; expected (n, {n} C), those of {n} "
                "prefixes beside each other"
            )
        return [part.contiguous() for part in logits.chunk(n, dim=1)]

    def _rows(self, values: Tensor | None) -> list[Tensor | None]:
        if values is None:
            return [None] * len(self.weights)
        return list(values.unbind(0))


def _stacked(values: list[Tensor | None]) -> Tensor | None:
    """Return the values of every prefix as one tensor; None if there are none."""
    known = [v for v in values if v is not None]
    return torch.stack(known) if known else None
