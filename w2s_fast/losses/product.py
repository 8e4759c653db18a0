r"""Product loss: learn from the normalised product of the student's and the weak distribution.

    T_i = softmax(beta log p_i + alpha log q_i), detached;       L = -sum_i w_i sum_k T_ik log p_ik

The released code multiplies probabilities and divides 0 by 0 where a hard label contradicts a
saturated student. In log space the limit is exact: T is 0 where q is 0, and never NaN. A row whose
weak label has no mass at all has gradient 0.

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
        log_p = logits.detach().to(acc).log_softmax(1)
        log_t = self.beta * log_p + self.alpha * weak.detach().to(acc).log()
        has_mass = (weak > 0).any(1, keepdim=True)
        # softmax of a row of -inf is NaN. NaN logits stay NaN, so that divergence is noticed.
        return torch.where(has_mass, torch.where(has_mass, log_t, 0.0).softmax(1), 0.0)
