"""Cross-entropy with the weak labels: what students are compared with.

    L = -sum_i w_i sum_k q_ik log p_ik,        q_i the soft weak label, or onehot(argmax q_i)

Source: Burns et al. 2023 (arXiv 2312.09390), naive finetuning; ``xent_loss`` of
openai/weak-to-strong.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from w2s_fast.losses._base import Loss, LossOut, check_labels


@dataclass(frozen=True, kw_only=True)
class Xent(Loss):
    """Cross-entropy with soft weak labels, or with their hardened form.

    Attributes:
        hard: replace soft labels by their top class (first of equals).
    """

    hard: bool = False

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
        """See ``Loss.__call__``; ``frac``, ``step`` and ``threshold`` play no part."""
        if self.hard:
            check_labels(weak)
        if self.hard and weak.is_floating_point():
            weak = weak.argmax(1)
        return self._sum(logits, weak, weight, state)


@dataclass(frozen=True, kw_only=True)
class HardXent(Xent):
    """``Xent`` with hardened labels by default."""

    hard: bool = True
