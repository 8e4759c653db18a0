r"""Product loss: learn from the normalised product of the student's and the weak distribution.

    T_i = softmax(beta log p_i + alpha log q_i), detached;       L = -sum_i w_i sum_k T_ik log p_ik

The released code multiplies probabilities and divides 0 by 0 where a hard label contradicts a
saturated student. In log space the limit is exact: T is 0 where q is 0, and never NaN. A row whose
weak label has no mass at all teaches nothing and has gradient 0.

Source: ``product_loss_fn`` of openai/weak-to-strong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import Loss, LossOut, check_labels


@dataclass(frozen=True, kw_only=True)
class Product(Loss):
    """Cross-entropy with p^beta q^alpha.

    Attributes:
        alpha: exponent of the weak label, above 0.
        beta: exponent of the student's own prediction; 0 is plain cross-entropy for alpha = 1.
    """

    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        self._check("alpha", 0.0)
        self._check("beta", 0.0)
        if self.alpha == 0:
            raise W2SError("Product: alpha is 0, which ignores the weak labels; expected above 0")

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
        """See ``Loss.__call__``. A hard label is its own product, whatever the student says."""
        check_labels(weak)
        if weak.is_floating_point() and tuple(weak.shape) == tuple(logits.shape):
            weak = self._target(logits, weak)
        return self._sum(logits, weak, weight, state)

    def _target(self, logits: Tensor, weak: Tensor) -> Tensor:
        acc = torch.promote_types(logits.dtype, torch.float32)
        log_p = logits.detach().to(acc).log_softmax(1)
        log_t = self.beta * log_p + self.alpha * weak.detach().to(acc).log()
        some = (weak > 0).any(1, keepdim=True)
        # softmax of a row of -inf is NaN; NaN logits stay NaN, so that divergence is seen.
        return torch.where(some, torch.where(some, log_t, 0.0).softmax(1), 0.0)
