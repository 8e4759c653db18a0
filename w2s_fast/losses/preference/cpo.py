r"""Contrastive preference optimisation: DPO without a reference, plus fine-tuning on the preferred.

    l(y1 over y2) = -log sigma( beta log pi(y1) - beta log pi(y2) ) - nll_coef/n1 log pi(y1)

Source: Xu et al., arXiv 2401.08417, Sec. 3, with the likelihood of the preferred answer per
token, as in its released code; ``label_smoothing`` as for ``SimPO``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from w2s_fast.losses.preference._base import Answers, Preference


@dataclass(frozen=True, kw_only=True)
class CPO(Preference):
    """-log sigma of the difference of log-probabilities, plus negative log-likelihood.

    Attributes:
        beta: scale of the reward, above 0.
        nll_coef: factor of the negative log-likelihood per token (needs lengths), at least 0.
        label_smoothing: assumed fraction of wrong labels, in [0, 0.5].
    """

    needs: ClassVar[tuple[str, ...]] = ()
    beta: float = 0.1
    nll_coef: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        self._check_range("beta", 0.0, open_low=True)
        self._check_range("nll_coef", 0.0)
        self._check_range("label_smoothing", 0.0, 0.5)

    def soften(self, q: Tensor) -> Tensor:
        """Return q (1-2e) + e."""
        return q * (1 - 2 * self.label_smoothing) + self.label_smoothing

    def reward(self, answers: Answers) -> Tensor:
        """Return beta times the log-probability."""
        return self.beta * answers.logp

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return -log sigma(reward(better) - reward(worse)) plus the negative log-likelihood."""
        loss = -logsigmoid(self.reward(better) - self.reward(worse))
        return loss - self.nll_coef * better.per_token().logp if self.nll_coef else loss
