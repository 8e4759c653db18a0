r"""Kahneman-Tversky optimisation: single answers, each good with probability q.

    l(y) = q lam_d [1 - sigma(beta (r - z0))] + (1 - q) lam_u [1 - sigma(beta (z0 - r))]
    r = log pi(y|x) - log ref(y|x)
    z0 = max(0, mean over mismatched (x_i, y_j), j != i, of their r),   no gradient

Source: arXiv 2402.01306, Eq. 8 (q = 1 desirable, q = 0 undesirable). z0 is a statistic of the
batch: compute it once over all micro-batches and ranks, so that the result does not depend on how
the batch is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses.preference._base import (
    Answers,
    Preference,
    PreferenceOut,
    check,
    masked_answers,
    mix,
    pack,
)


@dataclass(frozen=True, kw_only=True)
class KTO(Preference):
    """Value of an answer relative to the batch's KL baseline, for single answers or pairs.

    Attributes:
        beta: strength of the regularisation towards the reference, above 0.
        desirable: weight lam_d of good answers, at least 0.
        undesirable: weight lam_u of bad answers, at least 0.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        self._check_range("beta", 0.0, open_low=True)
        self._check_range("desirable", 0.0)
        self._check_range("undesirable", 0.0)

    def reward(self, answers: Answers) -> Tensor:
        """Return beta times the log-ratio."""
        return self.beta * answers.log_ratio()

    def baseline(self, mismatched: Answers, *, weight: Tensor | None = None) -> Tensor:
        """Compute 0-d z0 from answers scored after the prompts of others; 0 if there are none.

        Args:
            mismatched: (M,) log-probabilities of y_j after x_i, j != i, and their reference.
            weight: (M,) weights of the mean; 0 takes an entry out.
        """
        _, weight = check(mismatched.logp.shape[0], {"mismatched": mismatched}, 1.0, weight)
        ratio = mismatched.log_ratio().detach()
        ratio = ratio.to(torch.promote_types(ratio.dtype, torch.float32))
        w = torch.ones_like(ratio) if weight is None else weight.detach().to(ratio.dtype)
        total = w.sum()
        mean = torch.where(w != 0, w * ratio, 0.0).sum() / torch.where(total > 0, total, 1.0)
        return mean.clamp_min(0)

    def __call__(  # type: ignore[override]  # adds the baseline; the second answer is optional
        self,
        first: Answers,
        second: Answers | None = None,
        q: Tensor | float = 1.0,
        *,
        baseline: Tensor | float,
        weight: Tensor | None = None,
    ) -> PreferenceOut:
        """Compute the sum of the losses of single answers.

        Args:
            first: answers that are good with probability q.
            second: None, or for pairs the answers that are good with probability 1 - q.
            q: (P,) or one number in [0, 1].
            baseline: z0, from ``baseline``.
            weight: (P,) weights >= 0; 0 takes an answer, or a pair, out.

        Returns:
            ``PreferenceOut``; ``count`` counts answers (two a pair). Without ``second`` the margin
            and the accuracy compare with z0.
        """
        n = first.logp.shape[0] if first.logp.dim() else 0
        both = {"first": first} if second is None else {"first": first, "second": second}
        q, weight = check(n, both, q, weight)
        z0 = torch.as_tensor(baseline, dtype=q.dtype, device=q.device).detach()
        if z0.dim():
            raise W2SError(f"baseline has shape {tuple(z0.shape)}; expected one number")
        mask = torch.ones_like(q, dtype=torch.bool) if weight is None else weight != 0
        first = masked_answers(first, mask)
        loss, other = self._single(first, q, z0), self.beta * z0
        if second is not None:
            second = masked_answers(second, mask)
            loss, other = loss + self._single(second, 1 - q, z0), self.reward(second)
        out = pack(loss, (self.reward(first) - other).detach(), q, weight, mask)
        return out if second is None else out._replace(count=2 * out.count)

    def _single(self, answers: Answers, q: Tensor, z0: Tensor) -> Tensor:
        gap = self.beta * (answers.log_ratio() - z0)
        # 1 - sigma(x) = sigma(-x), without cancellation.
        return mix(q, self.desirable * (-gap).sigmoid(), self.undesirable * gap.sigmoid())
