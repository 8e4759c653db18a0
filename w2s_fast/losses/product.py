r"""Product loss: learn from the normalised product of the student's and the weak distribution.

    T_i = softmax(beta log p_i + alpha log q_i), detached;       L = -sum_i w_i sum_k T_ik log p_ik

The released code multiplies probabilities and divides 0 by 0 where a hard label contradicts a
saturated student. In log space the limit is exact: T is 0 where q is 0, and NaN only where the
logits or the label of the row are. A row whose weak label has no mass at all has gradient 0; one
with all its mass on a class of logit -inf has an infinite loss and a finite gradient.

Source: ``product_loss_fn`` of openai/weak-to-strong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import LossContext, check_labels
from w2s_fast.losses._one_call import OneCallLoss

_LOG_ZERO = -1e30


@dataclass(frozen=True, kw_only=True)
class Product(OneCallLoss):
    """Cross-entropy with p^beta q^alpha.

    Attributes:
        alpha: exponent of the weak label, above 0.
        beta: exponent of the student's own prediction; 0 is plain cross-entropy for alpha = 1.
    """

    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        self._check_range("alpha", 0.0)
        self._check_range("beta", 0.0)
        if self.alpha == 0:
            raise W2SError("Product: alpha is 0, which ignores the weak labels; expected above 0")

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the product. A hard label is its own, whatever the student predicts."""
        check_labels(weak)
        if weak.is_floating_point() and tuple(weak.shape) == tuple(logits.shape):
            weak = self._target(logits, weak)
        return weak, {}

    def _target(self, logits: Tensor, weak: Tensor) -> Tensor:
        acc = torch.promote_types(logits.dtype, torch.float32)
        weak = weak.detach().to(acc)
        some = weak != 0
        log_p = logits.detach().to(acc).log_softmax(1)
        # Finite for p = 0, for beta = 0 and for a label that has all its mass there.
        log_p = torch.where(some, log_p.clamp_min(_LOG_ZERO), _LOG_ZERO)
        log_t = self.beta * log_p + self.alpha * weak.log()
        has_mass = some.any(1, keepdim=True)
        # softmax of a row of -inf is NaN. NaN in the row stays NaN, so that divergence is noticed.
        return torch.where(has_mass, torch.where(has_mass, log_t, 0.0).softmax(1), 0.0)
