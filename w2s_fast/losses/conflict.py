r"""A student's loss under an explicit conflict: a bonus for being wrong where it is wrong.

    L_i = l_i + alpha m_i l'(z_i, 1 - y_i),        m_i = 1[the student contradicts y_i]

y_i is the true class of two. l is any loss of weak labels, and l' the loss of the opposite class:
cross-entropy for class logits, -log sigma(r(wrong) - r(right)) = BCE(sigma(d_i), 1 - y_i), and for
pairs of completions the preference loss with the order reversed, for SimPO
-log sigma(beta (s(wrong) - s(right)) - gamma). m_i is a constant; a tie contradicts nothing.

The term simulates an adversarial second objective and reads true labels, which a weak-to-strong
student never has: use it to measure deception, see ``metrics.deception_score``.

Source: Yang et al. 2024 (arXiv 2406.11431), alpha 0.5. Their code has the same values,
BCE(m sigma(d), m (1 - y)) with a mean over all rows of the micro-batch, those of m = 0 too; it
takes the sigmoid first, which saturates in low precision (in bf16 from |d| of about 6). Here the
logarithm is taken of logits, and rows are divided by the normaliser of the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import IGNORE, Loss, LossContext, LossOut
from w2s_fast.losses._wrapping import WrappingLoss
from w2s_fast.losses.pairwise import ImplicitReward, PairLoss, rewards
from w2s_fast.losses.xent import Xent
from w2s_fast.ops.checks import check_classes


@dataclass(frozen=True, kw_only=True)
class ExplicitConflict(WrappingLoss):
    """A loss plus an objective against the true classes, ``LossContext.gold``; two classes.

    Attributes:
        loss: the loss of the weak labels, of class logits or of ``training.CompletionPairs``.
        alpha: weight of the conflicting objective, at least 0.
    """

    loss: Loss = field(default_factory=Xent)
    alpha: float = 0.5

    def __post_init__(self) -> None:
        self._check_range("alpha", 0.0)
        if isinstance(self.loss, ExplicitConflict):
            raise W2SError("ExplicitConflict has loss ExplicitConflict; add the conflict once")

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``.

        Raises:
            W2SError: ``ctx.gold`` is missing or does not fit, or there are not two classes.
        """
        out = self.loss.forward(logits, weak, ctx._replace(gold=None))
        wrong = opposite_classes(self._scores(logits.detach()), ctx.gold)
        term = self._opposing.forward(logits, wrong, LossContext(ctx.weight))
        return out._replace(loss_sum=out.loss_sum + self.alpha * term.loss_sum)

    @property
    def preference(self) -> object:
        """The preference loss of pairs; None for a loss of class logits."""
        return getattr(self.loss, "preference", None)

    @property
    def _opposing(self) -> Loss:
        if isinstance(self.loss, PairLoss | ImplicitReward):
            return PairLoss(preference=self.loss.preference)
        return Xent()

    def _scores(self, logits: Tensor) -> Tensor:
        """Return the (n, 2) numbers whose larger one is the student's class."""
        if isinstance(self.loss, PairLoss | ImplicitReward):
            return rewards(self.loss.preference, logits)
        return logits


def opposite_classes(scores: Tensor, gold: Tensor | None) -> Tensor:
    """Return (n,) int64: 1 - gold where the student contradicts ``gold``, -100 elsewhere.

    Args:
        scores: (n, 2), the larger one is the student's class; equal or NaN scores contradict
            nothing.
        gold: (n,) int64 true classes, -100 where there is none.

    Raises:
        W2SError: ``gold`` is missing or does not fit, or there are not two classes.
    """
    if scores.dim() != 2 or scores.shape[1] != 2:
        raise W2SError(
            f"logits have shape {tuple(scores.shape)}; an explicit conflict needs two classes, "
            "(n, 2): the opposite of a class is not defined among more"
        )
    if gold is None:
        raise W2SError(
            "ExplicitConflict has no true classes; pass gold=, (n,) integers, or train(gold=)"
        )
    if gold.shape != scores.shape[:1] or gold.is_floating_point():
        raise W2SError(
            f"gold has shape {tuple(gold.shape)} and dtype {gold.dtype}; expected "
            f"({scores.shape[0]},) integers, one true class per row"
        )
    check_classes(gold, 2, IGNORE, "gold")
    right = gold.clamp_min(0).unsqueeze(1)
    contradicts = scores.gather(1, 1 - right) > scores.gather(1, right)
    return torch.where(contradicts.squeeze(1) & (gold != IGNORE), 1 - gold, IGNORE)
