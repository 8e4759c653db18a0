r"""Base class of the preference losses: a sum over pairs of answers, and its normaliser.

    L = sum_i w_i [ q_i l_i(first over second) + (1 - q_i) l_i(second over first) ]

q_i in [0, 1] is the weak judge's probability that the first answer is better; q_i = 1 is the
published hard loss. A loss takes log-probabilities, not a model: those of the policy come from
``w2s_fast.linear_logprob``, those of the reference are computed once and have no gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._fields import RangeChecked
from w2s_fast.losses._tensor_checks import check_values
from w2s_fast.ops.arguments import check_methods
from w2s_fast.ops.checks import check_total, check_weight_dtype


class Answers(NamedTuple):
    """One answer of every pair.

    Attributes:
        logp: (P,) log-probability of the answer, SUMMED over its tokens; gets gradients. For
            ``BradleyTerry`` the reward of the answer.
        reference: (P,) the same under the frozen reference model; gets no gradient.
        length: (P,) number of summed tokens, at least 1.
        target: (P,) log-ratio that the answer should have, for ``WSPO``: that of an aligned weak
            model to its own reference, SUMMED over the tokens; gets no gradient.
    """

    logp: Tensor
    reference: Tensor | None = None
    length: Tensor | None = None
    target: Tensor | None = None

    def per_token(self) -> Answers:
        """Return the answers with mean instead of summed log-probabilities."""
        if self.length is None:
            raise W2SError("this preference loss divides by lengths; pass Answers(length=...)")
        n = self.length.detach().clamp_min(1)
        reference = None if self.reference is None else self.reference / n
        target = None if self.target is None else self.target / n
        return Answers(self.logp / n, reference, self.length, target)

    def log_ratio(self) -> Tensor:
        """Return (P,) log pi(y|x) - log pi_ref(y|x)."""
        if self.reference is None:
            raise W2SError("this preference loss needs a reference; pass Answers(reference=...)")
        return self.logp - self.reference


class PreferenceOut(NamedTuple):
    """Result of one call over P pairs.

    Attributes:
        loss_sum: 0-d, differentiable, SUM of weighted pair losses.
        count: 0-d normaliser: sum of the weights of the pairs that count, or their number.
        metrics: detached 0-d SUMS over the pairs that count: ``pairs``, their number; ``margin``,
            reward of the preferred minus that of the other answer, in expectation over q;
            ``accuracy``, the probability that the larger reward is the preferred one.
    """

    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count
    metrics: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Preference(RangeChecked):
    """Base of all preference losses. A new one overrides ``reward`` and ``ranked``.

    Attributes:
        needs: fields of ``Answers`` besides log-probability and length that the loss reads.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference",)

    def __init_subclass__(cls) -> None:
        """Check the argument types of every call; see ``checked``."""
        check_methods(cls, ("__call__", "baseline"))

    def reward(self, answers: Answers) -> Tensor:
        """Return the (P,) implicit reward of each answer, which ``metrics`` compare."""
        raise TypeError(f"{type(self).__name__} must define reward")

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return the (P,) published loss if ``better`` is certainly preferred."""
        raise TypeError(f"{type(self).__name__} must define ranked")

    def soften(self, q: Tensor) -> Tensor:
        """Return the (P,) weight of ``ranked(first, second)`` for a judge's probability q."""
        return q

    def __call__(
        self,
        first: Answers,
        second: Answers,
        q: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
    ) -> PreferenceOut:
        """Compute the sum of the pair losses.

        Args:
            first, second: the two answers of every pair.
            q: (P,) or one number: probability that the first answer is better, in [0, 1].
            weight: (P,) pair weights >= 0; 0 takes a pair out, even if its numbers are not finite.

        Raises:
            W2SError: for shapes that differ, q outside [0, 1], a negative weight, an empty answer
                (values are checked on the CPU only), or a missing reference or length.
        """
        n = first.logp.shape[0] if first.logp.dim() else 0
        q, weight = check(n, {"first": first, "second": second}, q, weight)
        mask = torch.ones_like(q, dtype=torch.bool) if weight is None else weight != 0
        first, second = masked_answers(first, mask), masked_answers(second, mask)
        loss = mix(self.soften(q), self.ranked(first, second), self.ranked(second, first))
        gap = (self.reward(first) - self.reward(second)).detach()
        return pack(loss, gap, q, weight, mask)


check_methods(Preference, ("__call__", "baseline"))


def mix(q: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """Return q plus + (1 - q) minus; a coefficient of 0 removes an infinite loss."""
    return torch.where(q != 0, q * plus, 0.0) + torch.where(q != 1, (1 - q) * minus, 0.0)


def masked_answers(answers: Answers, mask: Tensor) -> Answers:
    """Return the answers in fp32 or wider, with finite numbers where ``mask`` is False.

    A NaN there would otherwise reach the gradient: 0 * NaN is NaN in backward.
    """
    acc = torch.promote_types(answers.logp.dtype, torch.float32)

    def constant(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.where(mask, x.detach().to(acc), 0.0)

    length = None if answers.length is None else torch.where(mask, answers.length, 1)
    logp = torch.where(mask, answers.logp.to(acc), -1.0)
    return Answers(logp, constant(answers.reference), length, constant(answers.target))


def pack(
    loss: Tensor, gap: Tensor, q: Tensor, weight: Tensor | None, mask: Tensor
) -> PreferenceOut:
    """Sum weighted losses and metrics; ``gap`` (P,) is reward(first) - reward(second)."""
    counts = mask.to(loss.dtype) if weight is None else torch.where(mask, weight, 0).to(loss.dtype)
    # An expectation over q: a tie, or a judge at 1/2, counts half.
    accuracy = torch.where(gap == 0, 0.5, torch.where(gap > 0, q, 1 - q))
    margin = torch.where(q != 0.5, (2 * q - 1) * gap, 0.0)
    total = counts.detach().sum()
    check_total(total)
    sums = {"pairs": torch.ones_like(gap), "margin": margin, "accuracy": accuracy}
    return PreferenceOut(
        torch.where(mask, loss * counts, 0.0).sum(),
        total,
        {name: torch.where(mask, x, 0.0).sum().detach() for name, x in sums.items()},
    )


def check(
    n: int, answers: dict[str, Answers], q: Tensor | float, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Check the inputs and return (q, weight) as (P,) tensors of the accumulator dtype.

    Raises:
        W2SError: see ``Preference.__call__``.
    """
    logp = next(iter(answers.values())).logp
    for name, a in answers.items():
        for field, x in a._asdict().items():
            _check_shape(f"{name}.{field}", x, n, logp)
        if not a.logp.is_floating_point():
            raise W2SError(f"{name}.logp has dtype {a.logp.dtype}; expected floating point")
        check_values(f"{name}.length", a.length, 1, math.inf, "lengths of at least one token")
    _check_shape("weight", weight, n, logp)
    if weight is not None:
        check_weight_dtype(weight)
    check_values("weight", weight, 0, math.inf, "weights of at least 0")
    acc = torch.promote_types(logp.dtype, torch.float32)
    if isinstance(q, Tensor):
        _check_shape("q", q, n, logp)
        q = q.detach().to(acc)
        q = q if weight is None else torch.where(weight != 0, q, 0.5)
        check_values("q", q, 0, 1, "probabilities in [0, 1]")
    elif not 0 <= q <= 1:
        raise W2SError(f"q is {q}; expected a probability in [0, 1]")
    else:
        q = torch.full((n,), float(q), dtype=acc, device=logp.device)
    return q, weight


def _check_shape(name: str, x: Tensor | None, n: int, like: Tensor) -> None:
    if x is None:
        return
    if tuple(x.shape) != (n,):
        raise W2SError(f"{name} has shape {tuple(x.shape)}; expected one number a pair, ({n},)")
    if x.device != like.device:
        raise W2SError(f"{name} is on {x.device}, logp on {like.device}; move one of them")
