"""Losses over pairs of completions, for ``train`` on ``CompletionPairs``.

Their logits are ``answers`` (B, 2, 3) or (B, 2, 4): for the first and the second completion of
every pair the log-probability summed over its tokens, that of the reference (NaN where there is
none), the number of tokens and, for ``WSPO``, the log-ratio of the weak model. The weak labels are
(B, 2): column 0 is the probability q that the first completion is better.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss, LossContext, LossOut, make_loss
from w2s_fast.losses._base import check_labels, one_hot, row_mask, summed_metrics
from w2s_fast.losses._wrapping import WrappingLoss
from w2s_fast.losses.preference import DPO, KTO, Answers, BradleyTerry, Preference, make_preference


@dataclass(frozen=True, kw_only=True)
class PairLoss(Loss):
    """A preference loss of pairs, q l(first over second) + (1 - q) l(second over first).

    Attributes:
        preference: the loss of one pair.
    """

    preference: Preference = field(default_factory=DPO)

    def __post_init__(self) -> None:
        _check_kind(self.preference)
        if isinstance(self.preference, KTO):
            raise W2SError(
                "PairLoss has preference KTO, which compares with completions of other prompts "
                "that pairs do not have; use DPO, or call KTO directly with a baseline"
            )

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``; logits are the answers, see the module."""
        first, second = split_answers(logits)
        q = _first_is_better(logits, weak)
        mask, weight = row_mask(weak, ctx.weight), ctx.weight
        if not weak.is_floating_point():  # soft labels have no -100
            weight = torch.where(mask, 1.0 if weight is None else weight, 0.0)
        out = self.preference(first, second, q, weight=weight)
        metrics = _metrics(rewards(self.preference, logits.detach()), weak, mask)
        return LossOut(out.loss_sum, self.count(weak, ctx.weight), ctx.state, metrics)


@dataclass(frozen=True, kw_only=True)
class ImplicitReward(WrappingLoss):
    """A weak-to-strong loss of two classes whose logits are the implicit rewards of a pair.

    With ``Xent`` and ``DPO`` it is ``PairLoss(preference=DPO())``. Only the reward of the
    preference loss is used: a margin, such as that of ``SimPO``, is not part of it.

    Attributes:
        loss: the loss; a batch threshold is one over the differences of two rewards.
        preference: defines the reward.
    """

    preference: Preference = field(default_factory=DPO)

    def __post_init__(self) -> None:
        _check_kind(self.preference)
        third = torch.tensor([0.25])
        if not torch.equal(self.preference.soften(third), third):
            raise W2SError(
                f"ImplicitReward has preference {self.preference}, whose model of label noise "
                "would be ignored; expected label_smoothing=0 and flip_rate=0, use PairLoss for it"
            )

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``; logits are the answers, see the module."""
        return self.loss.forward(self.inner_logits(logits), weak, ctx)

    def inner_logits(self, logits: Tensor) -> Tensor:
        """Return the (B, 2) rewards of the answers."""
        return rewards(self.preference, logits)


def split_answers(answers: Tensor) -> tuple[Answers, Answers]:
    """Return the first and the second completions of (B, 2, 3 or 4) answers.

    Raises:
        W2SError: for another shape.
    """
    if answers.dim() != 3 or answers.shape[1] != 2 or answers.shape[2] not in (3, 4):
        raise W2SError(
            f"logits have shape {tuple(answers.shape)}; expected answers (B, 2, 3) or (B, 2, 4), "
            "which a generation model computes of CompletionPairs"
        )
    first, second = (Answers(*answers[:, side].unbind(-1)) for side in range(2))
    return first, second


def _first_is_better(answers: Tensor, weak: Tensor) -> Tensor:
    """Return (B,) probabilities that the first completion is better, of hard or soft labels."""
    check_labels(weak)
    pairs, hard = len(answers), not weak.is_floating_point()
    expected = (pairs,) if hard else (pairs, 2)
    if tuple(weak.shape) != expected:
        raise W2SError(f"weak has shape {tuple(weak.shape)}; expected {expected}, one label a pair")
    return one_hot(weak, 2, answers.dtype)[:, 0] if hard else weak[:, 0]


def rewards(preference: Preference, answers: Tensor) -> Tensor:
    """Return the (B, 2) rewards of the first and the second completions."""
    return torch.stack([preference.reward(side) for side in split_answers(answers)], 1)


def make_pair_loss(spec: str) -> PairLoss | ImplicitReward:
    """Build a loss over pairs: ``"dpo:beta=0.2"``, or ``"logconf@dpo"`` for ``ImplicitReward``.

    Args:
        spec: of a preference loss, or of a weak-to-strong loss and, after "@", of the preference
            loss that defines the reward: ``"logconf:aux_coef=0.75@dpo_norm:beta=5"``.

    Raises:
        W2SError: for an unknown name or field, or a loss that has no meaning for pairs.
    """
    loss, at, preference = spec.rpartition("@")
    if at:
        return ImplicitReward(loss=make_loss(loss), preference=make_preference(preference))
    return PairLoss(preference=make_preference(spec))


def _check_kind(preference: Preference) -> None:
    if isinstance(preference, BradleyTerry):
        raise W2SError(
            "BradleyTerry takes the rewards of a reward model, and completions have "
            "log-probabilities; use DPO, or train a model of kind='preference' with Xent"
        )


def _metrics(z: Tensor, weak: Tensor, mask: Tensor) -> dict[str, Tensor]:
    p, top = z.softmax(1), weak.argmax(1) if weak.is_floating_point() else weak
    return summed_metrics(mask, z.argmax(1) == top, p.amax(1), torch.special.entr(p).sum(1))
