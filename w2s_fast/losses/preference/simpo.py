r"""Simple preference optimisation: mean log-probability as the reward, no reference.

    l(y1 over y2) = -log sigma( beta/n1 log pi(y1) - beta/n2 log pi(y2) - gamma )

Source: arXiv 2405.14734, Eq. 6 (beta 2 to 2.5, gamma 0.3 to 1.6); ``label_smoothing`` as in its
released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from w2s_fast.losses.preference._base import Answers, Preference


@dataclass(frozen=True, kw_only=True)
class SimPO(Preference):
    """-log sigma of the difference of mean log-probabilities beyond a margin.

    Attributes:
        beta: scale of the reward, above 0.
        gamma: required margin of rewards, at least 0.
        label_smoothing: assumed fraction of wrong labels, in [0, 0.5].
    """

    needs: ClassVar[tuple[str, ...]] = ()
    beta: float = 2.0
    gamma: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        self._check_range("beta", 0.0, open_low=True)
        self._check_range("gamma", 0.0)
        self._check_range("label_smoothing", 0.0, 0.5)

    def soften(self, q: Tensor) -> Tensor:
        """Return q (1-2e) + e."""
        return q * (1 - 2 * self.label_smoothing) + self.label_smoothing

    def reward(self, answers: Answers) -> Tensor:
        """Return beta times the mean log-probability."""
        return self.beta * answers.per_token().logp

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return -log sigma(reward(better) - reward(worse) - gamma)."""
        return -logsigmoid(self.reward(better) - self.reward(worse) - self.gamma)
