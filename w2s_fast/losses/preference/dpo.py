r"""Direct preference optimisation, summed or length-normalised, with two models of label noise.

    h = beta [ (log pi(y1) - log ref(y1)) / n1 - (log pi(y2) - log ref(y2)) / n2 ]
    l(y1 over y2) = -log sigma(h),            n = 1, or the lengths for ``DPONorm``

Sources: DPO, arXiv 2305.18290, Eq. 7; length-normalised: Tulu 3, arXiv 2411.15124, Eq. 6;
``label_smoothing`` e (conservative DPO, Mitchell 2023): (1-e) l(+) + e l(-), a label 1 counts as
1-e; ``flip_rate`` e (robust DPO, arXiv 2403.00409, Eq. 12): [(1-e) l(+) - e l(-)] /
(1-2e), unbiased where labels were flipped at that rate. Both are affine in the judge's q.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from w2s_fast.errors import PreferenceWarning
from w2s_fast.losses.preference._base import Answers, Preference


@dataclass(frozen=True, kw_only=True)
class DPO(Preference):
    """-log sigma of the difference of log-ratios to the reference.

    Attributes:
        beta: strength of the regularisation towards the reference, above 0.
        label_smoothing: assumed fraction of wrong labels, in [0, 0.5]; conservative.
        flip_rate: known rate of flipped labels, in [0, 0.5); unbiased.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    flip_rate: float = 0.0

    def __post_init__(self) -> None:
        self._check_range("beta", 0.0, open_low=True)
        self._check_range("label_smoothing", 0.0, 0.5)
        self._check_range("flip_rate", 0.0, 0.4999)
        self._check_form()

    def _check_form(self) -> None:
        if self.beta >= 1:
            _warn_form(f"DPO has beta={self.beta:g}, and multiplies", "sums", "below 1", "DPONorm")

    def soften(self, q: Tensor) -> Tensor:
        """Return q (1-2e) + e for ``label_smoothing``, then (q - e) / (1-2e) for ``flip_rate``."""
        q = q * (1 - 2 * self.label_smoothing) + self.label_smoothing
        return (q - self.flip_rate) / (1 - 2 * self.flip_rate)

    def reward(self, answers: Answers) -> Tensor:
        """Return beta times the log-ratio."""
        return self.beta * answers.log_ratio()

    def ranked(self, better: Answers, worse: Answers) -> Tensor:
        """Return -log sigma(reward(better) - reward(worse))."""
        return -logsigmoid(self.reward(better) - self.reward(worse))


@dataclass(frozen=True, kw_only=True)
class DPONorm(DPO):
    """DPO on log-ratios per token; ``beta`` is correspondingly larger.

    Attributes:
        beta, label_smoothing, flip_rate: see ``DPO``.
    """

    beta: float = 5.0

    def _check_form(self) -> None:
        if self.beta < 0.5:
            how = f"DPONorm has beta={self.beta:g}, and multiplies"
            _warn_form(how, "means", "of 0.5 or more", "DPO")

    def reward(self, answers: Answers) -> Tensor:
        """Return beta times the log-ratio per token."""
        return self.beta * answers.per_token().log_ratio()


def _warn_form(how: str, form: str, usual: str, other: str) -> None:
    """Warn about a beta of the other form; the two differ by the length of an answer."""
    warnings.warn(
        f"{how} {form} of token log-ratios, where a beta {usual} is usual; did you mean {other}?",
        PreferenceWarning,
        stacklevel=5,  # the call of the class: dataclasses add a frame
    )
