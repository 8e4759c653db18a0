r"""What a preference loss is: numbers of two answers in, a sum over pairs and its count out.

    L = sum_i w_i [ q_i l_i(first over second) + (1 - q_i) l_i(second over first) ]

q_i in [0, 1] is the weak judge's probability that the first answer is the better one; q_i = 1 is
the published hard loss. The model is not seen here: log-probabilities of answers come from
``w2s_fast.linear_logprob``, those of the reference were computed once and are plain numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import check_methods, check_number
from w2s_fast.ops.checks import check_weight_dtype
from w2s_fast.ops.transforms import values


class Answers(NamedTuple):
    """One answer of every pair.

    Attributes:
        logp: (P,) log-probability of the answer, SUMMED over its tokens; gets gradients. For
            ``BradleyTerry`` the reward of the answer.
        reference: (P,) the same under the frozen reference model: numbers, without gradient.
        length: (P,) number of tokens that were summed, at least 1.
    """

    logp: Tensor
    reference: Tensor | None = None
    length: Tensor | None = None

    def per_token(self) -> Answers:
        """The same with mean instead of summed log-probabilities."""
        if self.length is None:
            raise W2SError("this preference loss divides by lengths; pass Answers(length=...)")
        n = self.length.detach().clamp_min(1)
        mean = None if self.reference is None else self.reference / n
        return Answers(self.logp / n, mean, self.length)

    def log_ratio(self) -> Tensor:
        """(P,) log pi(y|x) - log pi_ref(y|x)."""
        if self.reference is None:
            raise W2SError("this preference loss needs a reference; pass Answers(reference=...)")
        return self.logp - self.reference


class PreferenceOut(NamedTuple):
    """What one call over P pairs gives back.

    Attributes:
        loss_sum: 0-d, differentiable, SUM of weighted pair losses.
        count: 0-d normaliser: sum of the weights of the pairs that count, or their number.
        metrics: detached 0-d SUMS over the pairs that count: ``pairs``, their number; ``margin``,
            reward of the preferred minus that of the other answer, in expectation over q;
            ``accuracy``, the probability that the larger reward is the preferred one.
    """

    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is of no use here
    metrics: dict[str, Tensor]


_CHECKED = ("__call__", "baseline")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Base of all preference losses. A new one overrides ``reward`` and ``ranked``."""

    def __init_subclass__(cls) -> None:
        """Check what every call is given, see ``checked``."""
        check_methods(cls, _CHECKED)

    def reward(self, answers: Answers) -> Tensor:
        """(P,) implicit reward of each answer, by which ``metrics`` compare them."""
        raise TypeError(f"{type(self).__name__} must define reward")

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """(P,) the published loss if ``better`` is preferred for certain."""
        raise TypeError(f"{type(self).__name__} must define ranked")

    def soften(self, q: Tensor) -> Tensor:
        """(P,) the weight of ``ranked(first, second)`` for a judge who says q."""
        return q

    def __call__(
        self,
        first: Answers,
        second: Answers,
        q: Tensor | float = 1.0,
        *,
        weight: Tensor | None = None,
    ) -> PreferenceOut:
        """Sum of the pair losses.

        Args:
            first, second: the two answers of every pair.
            q: (P,) or one number: probability that the first answer is better, in [0, 1].
            weight: (P,) pair weights >= 0; 0 takes a pair out, whatever its numbers are.

        Raises:
            W2SError: for shapes that differ, q outside [0, 1], a negative weight, an empty answer
                (values are looked at on the CPU only), or a missing reference or length.
        """
        n = first.logp.shape[0] if first.logp.dim() else 0
        q, weight = check(n, {"first": first, "second": second}, q, weight)
        kept = torch.ones_like(q, dtype=torch.bool) if weight is None else weight != 0
        first, second = only(first, kept), only(second, kept)
        loss = mix(self.soften(q), self.ranked(first, second), self.ranked(second, first))
        gap = (self.reward(first) - self.reward(second)).detach()
        return pack(loss, gap, q, weight, kept)

    def _check(self, name: str, low: float, high: float = math.inf, *, open_: bool = False) -> None:
        """Raise ``W2SError`` unless field ``name`` is in [low, high], or above low if ``open_``."""
        value = getattr(self, name)
        check_number(f"{type(self).__name__}: {name}", value)
        if not low <= value <= high or (open_ and value == low):
            least = "above" if open_ else "at least"
            span = f"{least} {low:g}" + ("" if high == math.inf else f" and at most {high:g}")
            raise W2SError(f"{type(self).__name__}: {name} is {value}; expected a number {span}")


check_methods(Preference, _CHECKED)


def mix(q: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """q plus + (1 - q) minus, where a coefficient of 0 outweighs an infinite loss."""
    return torch.where(q != 0, q * plus, 0.0) + torch.where(q != 1, (1 - q) * minus, 0.0)


def only(answers: Answers, kept: Tensor) -> Answers:
    """Answers in fp32 or wider; those that do not count replaced: 0 * NaN is NaN in backward."""
    acc = torch.promote_types(answers.logp.dtype, torch.float32)
    reference, length = answers.reference, answers.length
    if reference is not None:
        reference = torch.where(kept, reference.detach().to(acc), 0.0)
    if length is not None:
        length = torch.where(kept, length, 1)
    return Answers(torch.where(kept, answers.logp.to(acc), -1.0), reference, length)


def pack(
    loss: Tensor, gap: Tensor, q: Tensor, weight: Tensor | None, kept: Tensor
) -> PreferenceOut:
    """Weight, sum up and measure; ``gap`` (P,) is reward(first) - reward(second)."""
    counts = kept.to(loss.dtype) if weight is None else torch.where(kept, weight, 0).to(loss.dtype)
    # An expectation over q, so a tie or a judge at 1/2 counts half.
    right = torch.where(gap == 0, 0.5, torch.where(gap > 0, q, 1 - q))
    margin = torch.where(q != 0.5, (2 * q - 1) * gap, 0.0)
    sums = {"pairs": torch.ones_like(gap), "margin": margin, "accuracy": right}
    return PreferenceOut(
        torch.where(kept, loss * counts, 0.0).sum(),
        counts.detach().sum(),
        {name: torch.where(kept, x, 0.0).sum().detach() for name, x in sums.items()},
    )


def check(
    n: int, answers: dict[str, Answers], q: Tensor | float, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(q, weight) as (P,) tensors of the accumulator dtype; raises ``W2SError`` on bad input."""
    logp = next(iter(answers.values())).logp
    for name, a in answers.items():
        for field, x in (("logp", a.logp), ("reference", a.reference), ("length", a.length)):
            _expect(f"{name}.{field}", x, n, logp)
        if not a.logp.is_floating_point():
            raise W2SError(f"{name}.logp has dtype {a.logp.dtype}; expected floating point")
        _values(f"{name}.length", a.length, 1, math.inf, "lengths of at least one token")
    acc = torch.promote_types(logp.dtype, torch.float32)
    if isinstance(q, Tensor):
        _expect("q", q, n, logp)
        _values("q", q, 0, 1, "probabilities in [0, 1]")
        q = q.detach().to(acc)
    elif not 0 <= q <= 1:
        raise W2SError(f"q is {q}; expected a probability in [0, 1]")
    else:
        q = torch.full((n,), float(q), dtype=acc, device=logp.device)
    _expect("weight", weight, n, logp)
    if weight is not None:
        check_weight_dtype(weight)
    _values("weight", weight, 0, math.inf, "weights of at least 0")
    return q, weight


def _expect(name: str, x: Tensor | None, n: int, like: Tensor) -> None:
    if x is None:
        return
    if tuple(x.shape) != (n,):
        raise W2SError(f"{name} has shape {tuple(x.shape)}; expected one number a pair, ({n},)")
    if x.device != like.device:
        raise W2SError(f"{name} is on {x.device}, logp on {like.device}; move one of them")


def _values(name: str, x: Tensor | None, low: float, high: float, expected: str) -> None:
    # On an accelerator the question would make the host wait.
    if x is None or x.device.type != "cpu" or x.numel() == 0:
        return
    x = values(x.detach()).flatten()  # under vmap, of every sample
    wrong = ~((x >= low) & (x <= high))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise W2SError(f"{name}[{at}] is {float(x[at])}; expected {expected}")
