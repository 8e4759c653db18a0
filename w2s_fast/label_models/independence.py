r"""Test whether sources depend on each other as a fitted model says, without knowing the class.

    X_ij = sum_{a,b} (O_ab - E_ab)^2 / E_ab,    E_ab = n sum_c P(Y = c, L_i = a, L_j = b)

O counts the symbols of two sources together, E is what the model expects: independence given the
class, P(Y = c) R[i, c, a] R[j, c, b], or the forest of ``TreeDawidSkene``. If the model holds, X is
at most chi-squared with (S_i - 1)(S_j - 1) degrees of freedom: the model was fitted to the same
votes, which makes the test conservative. Cells that expect fewer than five rows are pooled. Holm's
correction covers all pairs.

Sources: Pearson's test of fit with bivariate margins of a latent class model, e.g. Maydeu-Olivares
and Joe 2005, "Limited- and full-information estimation and goodness-of-fit testing".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._base import LabelModel
from w2s_fast.label_models.votes import check_votes, symbols_of
from w2s_fast.ops.votes.blocks import row_blocks

LEAST_EXPECTED = 5.0  # rows of a cell
_BLOCK_ROWS = 1 << 14


class IndependenceTest(NamedTuple):
    """Result: is the model refuted, by which pairs (i, j), and p of all pairs (m, m)."""

    refuted: bool
    pairs: tuple[tuple[int, int], ...]
    p_values: Tensor


def independence_test(model: LabelModel, votes: Any, level: float = 0.05) -> IndependenceTest:
    """Test the dependence between sources in a fitted model against the votes it was fitted to.

    Args:
        model: fitted, with ``abstain="symbol"``: it assumes independence given the class, or, if
            it is a ``TreeDawidSkene``, a forest.
        votes: (n, m).
        level: probability of refuting the assumption where it holds, at most.

    Raises:
        W2SError: The model is not fitted, or the level is not between 0 and 1.
    """
    from w2s_fast.metrics import holm

    if not 0 < level < 1:
        raise W2SError(f"level is {level!r}; expected a probability between 0 and 1")
    model._check_fitted()
    m = len(model.rates)
    matrix = check_votes(votes, model.n_classes, m)
    observed = _pair_tables(matrix, model.n_classes)
    expected = len(matrix) * model.pair_joint().sum(0)
    statistic, freedom = _pearson(observed.transpose(1, 2), expected.transpose(1, 2))
    p_values = torch.special.gammaincc(freedom / 2, statistic / 2)
    p_values = torch.where(freedom > 0, p_values, 1.0).fill_diagonal_(1.0)
    i, j = torch.triu_indices(m, m, 1)
    adjusted = holm(p_values[i, j].tolist())
    pairs = zip(i.tolist(), j.tolist(), adjusted, strict=True)
    found = tuple((a, b) for a, b, p in pairs if p is not None and p <= level)
    return IndependenceTest(bool(found), found, p_values)


def _pair_tables(votes: Tensor, n_classes: int) -> Tensor:
    """Return counts (m, K+1, m, K+1) of the symbols of all pairs of sources."""
    m, s = votes.shape[1], n_classes + 1
    counts = torch.zeros(m * s, m * s, dtype=torch.float64)
    for rows in row_blocks(len(votes), _BLOCK_ROWS):
        x = torch.nn.functional.one_hot(symbols_of(votes[rows], n_classes), s).flatten(1).float()
        counts += x.T @ x
    return counts.view(m, s, m, s)


def _pearson(observed: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Return statistic and degrees of freedom (m, m) of tables (m, m, S, S)."""
    large = expected >= LEAST_EXPECTED
    terms = (observed - expected).square() / expected.clamp(min=1e-12)
    statistic = (terms * large).sum((2, 3))
    rest = (expected * ~large).sum((2, 3))
    pooled = (observed * ~large).sum((2, 3))
    counted = rest >= LEAST_EXPECTED
    statistic = statistic + ((pooled - rest).square() / rest.clamp(min=1e-12)) * counted
    cells = large.sum((2, 3)) + counted
    used = (observed.sum(3) > 0).sum(2)  # S_i
    return statistic, torch.minimum((used - 1) * (used.T - 1), cells - 1).clamp(min=0).double()
