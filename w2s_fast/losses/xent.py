"""Cross-entropy with the weak labels, the baseline of weak-to-strong training.

    L = -sum_i w_i sum_k q_ik log p_ik,        q_i the soft weak label, or onehot(argmax q_i)

Source: Burns et al. 2023 (arXiv 2312.09390), naive finetuning; ``xent_loss`` of
openai/weak-to-strong.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses._base import Loss, LossContext, LossOut, check_labels


@dataclass(frozen=True, kw_only=True)
class Xent(Loss):
    """Cross-entropy with soft weak labels, or with their hardened form.

    Attributes:
        hard: replace soft labels by their top class (the first of equal ones).
    """

    hard: bool = False

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``; only the weights of ``ctx`` are used."""
        if self.hard:
            check_labels(weak)
        if self.hard and weak.is_floating_point():
            weak = weak.argmax(1)
        return self._fused(logits, weak, ctx)


@dataclass(frozen=True, kw_only=True)
class HardXent(Xent):
    """``Xent`` with hardened labels by default."""

    hard: bool = True
