r"""Odds-ratio preference optimisation: one stage, no reference.

    l(y1 over y2) = -mean log p(y1) - lam log sigma(log odds(y1) - log odds(y2))
    odds(y) = P / (1 - P),  P = exp(mean log p(y))

The first term is the usual fine-tuning loss of the preferred answer, per token of that answer.
Source: arXiv 2403.07691, Eq. 6 and 7 (lam = 0.1). Sequences of probability 1 have infinite odds;
P is clamped to one rounding below 1, where its gradient is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from w2s_fast.losses.preference._base import Answers, Preference


@dataclass(frozen=True, kw_only=True)
class ORPO(Preference):
    """Fine-tuning on the preferred answer plus the log odds ratio.

    Attributes:
        lam: weight of the odds-ratio term, at least 0.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    lam: float = 0.1

    def __post_init__(self) -> None:
        self._check_range("lam", 0.0)

    def reward(self, answers: Answers) -> Tensor:
        """Return the log odds of the answer."""
        mean = answers.per_token().logp
        return mean - log1mexp(mean)

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return the negative log-likelihood per token plus lam times the odds-ratio term."""
        ratio = logsigmoid(self.reward(better) - self.reward(worse))
        return -better.per_token().logp - self.lam * ratio


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x <= 0 without cancellation; x is clamped to a rounding below 0."""
    x = x.clamp_max(-torch.finfo(x.dtype).eps)
    near = x > -0.6931471805599453
    # Each branch gets arguments with a finite gradient: where() would propagate a NaN of the other.
    small = torch.where(near, x, -0.5)
    large = torch.where(near, -1.0, x)
    return torch.where(near, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))
