"""The test of independence: it holds its level, and finds copies."""

from __future__ import annotations

import pytest
import torch
from helpers.planted_votes import draw_votes, planted

from w2s_fast import W2SError
from w2s_fast.label_models import DawidSkene, independence_test


@pytest.mark.slow
def test_level_under_independence() -> None:
    """At most 5 % of 120 experiments refute, and some p-values are small: it is not inert."""
    first = planted(2000, 6, [0.6, 0.4], accuracy=(0.65, 0.9))
    refuted, smallest = 0, []
    for seed in range(120):
        g = torch.Generator().manual_seed(seed)
        classes = torch.multinomial(first.prior, 2000, replacement=True, generator=g)
        votes = draw_votes(first.rates, classes, seed)
        result = independence_test(DawidSkene(2).fit(votes), votes)
        refuted += result.refuted
        smallest.append(float(result.p_values.min()))
    assert refuted <= 11  # of 120 at 5 %: 6 expected, 11 with probability 0.98
    assert min(smallest) < 0.05


def test_a_noisy_copy_is_found() -> None:
    p = planted(3000, 8, [0.6, 0.4])
    votes = p.votes.clone()
    copied = torch.rand(3000, generator=torch.Generator().manual_seed(0)) < 0.4
    votes[:, 5] = torch.where(copied, votes[:, 2], votes[:, 5])
    result = independence_test(DawidSkene(2).fit(votes), votes)
    assert result.refuted and (2, 5) in result.pairs
    assert int(result.p_values.argmin()) in (2 * 8 + 5, 5 * 8 + 2)
    torch.testing.assert_close(result.p_values, result.p_values.T)


def test_statistic_by_hand() -> None:
    """A table of 2 x 2 cells (nobody abstains) against what the true rates expect."""
    from w2s_fast.label_models.independence import _pearson

    observed = torch.tensor([[30.0, 20, 0], [10, 40, 0], [0, 0, 0]]).double()
    expected = torch.tensor([[24.0, 26, 1e-9], [16, 34, 0], [0, 0, 0]]).double()
    statistic, freedom = _pearson(observed.view(1, 1, 3, 3), expected.view(1, 1, 3, 3))
    assert float(statistic) == pytest.approx(36 / 24 + 36 / 26 + 36 / 16 + 36 / 34)
    assert float(freedom) == 1


def test_small_cells_are_pooled() -> None:
    from w2s_fast.label_models.independence import _pearson

    observed = torch.tensor([[90.0, 6, 1], [2, 0, 5], [2, 4, 0]]).double()
    expected = torch.tensor([[88.0, 7, 3], [4, 1, 1], [3, 2, 1]]).double()
    statistic, freedom = _pearson(observed.view(1, 1, 3, 3), expected.view(1, 1, 3, 3))
    pooled = (1 + 2 + 0 + 5 + 2 + 4 + 0, 3 + 4 + 1 + 1 + 3 + 2 + 1)
    last = (pooled[0] - pooled[1]) ** 2 / pooled[1]
    assert float(statistic) == pytest.approx(4 / 88 + 1 / 7 + last)
    assert float(freedom) == 2  # three cells, fewer than (3 - 1)(3 - 1)


def test_wrong_uses() -> None:
    p = planted(200, 4, [0.5, 0.5])
    with pytest.raises(W2SError, match="call fit"):
        independence_test(DawidSkene(2), p.votes)
    with pytest.raises(W2SError, match="level is 5"):
        independence_test(DawidSkene(2).fit(p.votes), p.votes, level=5)
