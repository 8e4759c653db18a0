"""Standard errors by the jackknife that leaves out one group of rows at a time.

    se^2 = (G - 1) / G sum_g (theta_-g - mean)^2

Source: Quenouille 1956; Tukey 1958. It needs no derivatives and holds for any smooth estimate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError

GROUPS = 20


class StandardErrors(NamedTuple):
    """Standard errors: ``prior`` (K,), 0 where it was given, and ``rates`` (m, K, K+1)."""

    prior: Tensor
    rates: Tensor


def row_groups(votes: Tensor) -> list[Tensor]:
    """Return the rows of votes (n, m) in 20 groups, dealt in turn.

    Raises:
        W2SError: There are fewer than three rows a group.
    """
    if len(votes) < 3 * GROUPS:
        raise W2SError(f"{len(votes)} rows; expected at least {3 * GROUPS} for standard errors")
    return [votes[g::GROUPS] for g in range(GROUPS)]


def jackknife(estimates: list[tuple[Tensor, Tensor]]) -> StandardErrors:
    """Return standard errors from (prior, rates) without each group in turn."""
    n = len(estimates)
    factor = (n - 1) / n**0.5  # std divides by n - 1
    prior, rates = (torch.stack(values).std(0) * factor for values in zip(*estimates, strict=True))
    return StandardErrors(prior, rates)
