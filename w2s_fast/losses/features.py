r"""Feature distillation of a low-rank model: its features near those of the full one.

    L_i = |f(x_i) - f_0(x_i)|^2 / D + strength mean over layers (max |U V - W| - bound)^2

Logits are (n, D + 1): the features f of the low-rank model, and in the last column the mean over
its layers, the same for all rows (``models.low_rank.FeatureModel``). Weak labels are (n, D + 1):
the features f_0 of the full model, and zeros, which ``train`` then does not take for probabilities.

Source: Guo, Wang & Kankanhalli 2023 (PELA, arXiv 2310.10700), feature distillation and bounded
perturbation of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from w2s_fast.losses._base import Loss, LossContext, LossOut, some_rows
from w2s_fast.ops.checks import check_weight


@dataclass(frozen=True, kw_only=True)
class FeatureDistillation(Loss):
    """Mean squared error of features, plus the deviation of the weights.

    Attributes:
        strength: weight of the deviation, at least 0.
    """

    of_features: ClassVar[bool] = True
    strength: float = 1.0

    def __post_init__(self) -> None:
        self._check_range("strength", 0.0)

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``."""
        mask, weak = some_rows(weak, ctx.weight), weak.to(logits)
        if mask is not None:  # before any arithmetic: NaN would reach the gradient
            logits, weak = (torch.where(mask.unsqueeze(1), x, 0.0) for x in (logits, weak))
        rows = (logits[:, :-1] - weak[:, :-1]).square().mean(1)
        rows = rows + self.strength * logits[:, -1]
        if ctx.weight is not None:
            weight = ctx.weight.detach().to(rows)
            check_weight(weight)
            rows = rows * weight
        return LossOut(rows.sum(), self.count(weak, ctx.weight), None, {})
