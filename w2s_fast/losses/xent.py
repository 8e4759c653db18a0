"""Cross-entropy with the weak labels, the baseline of weak-to-strong training.

    L = -sum_i w_i sum_k q_ik log p_ik,        q_i the soft weak label, or onehot(argmax q_i)

Source: Burns et al. 2023 (arXiv 2312.09390), naive finetuning; ``xent_loss`` of
openai/weak-to-strong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from w2s_fast.losses._base import LossContext, check_labels
from w2s_fast.losses._one_call import OneCallLoss


@dataclass(frozen=True, kw_only=True)
class Xent(OneCallLoss):
    """Cross-entropy with soft weak labels, or with their hardened form.

    Attributes:
        hard: replace soft labels by their top class (the first of equal ones).
    """

    hard: bool = False

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """See ``OneCallLoss.terms``; only the weights of ``ctx`` are used."""
        if self.hard:
            check_labels(weak)
        if self.hard and weak.is_floating_point():
            weak = weak.argmax(1)
        return weak, {}


@dataclass(frozen=True, kw_only=True)
class HardXent(Xent):
    """``Xent`` with hardened labels by default."""

    hard: bool = True
