"""Votes whose true classes and rates are known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Planted(NamedTuple):
    """Votes (n, m), true classes (n,), the prior (K,) and the rates (m, K, K+1) that made them."""

    votes: Tensor
    classes: Tensor
    prior: Tensor
    rates: Tensor


def planted(
    n: int, m: int, prior: list[float], seed: int = 0, accuracy: tuple[float, float] = (0.6, 0.9)
) -> Planted:
    """Draw independent sources; when they abstain depends on the class."""
    g = torch.Generator().manual_seed(seed)
    k = len(prior)
    right = accuracy[0] + (accuracy[1] - accuracy[0]) * torch.rand(m, k, generator=g).double()
    abstain = 0.4 * torch.rand(m, k, generator=g).double()
    eye = torch.eye(k, dtype=torch.float64)
    confusion = right[:, :, None] * eye + ((1 - right) / (k - 1))[:, :, None] * (1 - eye)
    rates = torch.cat([(1 - abstain)[:, :, None] * confusion, abstain[:, :, None]], 2)
    balance = torch.tensor(prior, dtype=torch.float64)
    classes = torch.multinomial(balance, n, replacement=True, generator=g)
    return Planted(draw_votes(rates, classes, seed), classes, balance, rates)


def draw_votes(rates: Tensor, classes: Tensor, seed: int) -> Tensor:
    """Draw (n, m) votes of independent sources, -1 where a source abstains."""
    g = torch.Generator().manual_seed(seed + 1000)
    columns = [torch.multinomial(r[classes], 1, generator=g)[:, 0] for r in rates]
    votes = torch.stack(columns, 1)
    return torch.where(votes == rates.shape[1], -1, votes)


def keyword_votes(
    n: int, seed: int, quiet: float = 0.1, busy: float = 2.5, share: float = 0.14
) -> tuple[Tensor, Tensor]:
    """Draw (votes, classes) of 73 rare sources that vote for one class each, as keyword rules do.

    Three rows in five have ``quiet`` times the chance of every vote, the others ``busy`` times:
    short and long texts. Equal factors make the sources independent given the class.
    """
    g = torch.Generator().manual_seed(seed)
    classes = (torch.rand(n, generator=g) < share).long()
    own = torch.tensor([0] * 31 + [1] * 42)
    precision, mean = torch.tensor([0.97, 0.9])[own], torch.tensor([0.013, 0.002])[own]
    coverage = mean * torch.empty(73).exponential_(generator=g).clamp(0.2, 4)
    balance = torch.tensor([1 - share, share])[own]
    right, wrong = coverage * precision / balance, coverage * (1 - precision) / (1 - balance)
    length = torch.where(torch.rand(n, generator=g) < 0.6, quiet, busy)
    fires = torch.where(classes[:, None] == own, right, wrong) * length[:, None]
    votes = torch.where(torch.rand(n, 73, generator=g) < fires, own, -1)
    return votes[:, (votes >= 0).any(0)], classes
