r"""Pairwise loss of a reward model.

    l(y1 over y2) = -log sigma( r(y1) - r(y2) - margin )

Sources: Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155, Eq. 1; the margin: Llama 2, arXiv
2307.09288, Eq. 2. With soft labels and no margin it is the reward-model loss of Burns et al., arXiv
2312.09390: the cross-entropy of sigma(r(y1) - r(y2)) with q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from w2s_fast.losses.preference._base import Answers, Preference


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(Preference):
    """-log sigma of the difference of two rewards, which are passed as ``Answers.logp``.

    Attributes:
        margin: required difference of rewards, at least 0.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    margin: float = 0.0

    def __post_init__(self) -> None:
        self._check_range("margin", 0.0)

    def reward(self, answers: Answers) -> Tensor:
        """Return the reward itself."""
        return answers.logp

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return -log sigma(r(better) - r(worse) - margin)."""
        return -logsigmoid(better.logp - worse.logp - self.margin)
