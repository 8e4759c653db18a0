"""Closed-form rates: planted truth, exact moments, masked dependencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted_votes import Planted, draw_votes, planted
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast import W2SError
from w2s_fast.label_models import MeTaL, Triplets, posterior
from w2s_fast.label_models.moments import third_moment
from w2s_fast.label_models.rank_one import rank_one


def accuracy(probs: torch.Tensor, classes: torch.Tensor) -> float:
    return float((probs.argmax(1) == classes).double().mean())


def even(n: int, m: int, prior: list[float], seed: int = 0) -> Planted:
    """Sources of one accuracy whatever the class, as one against the rest assumes."""
    p = planted(n, m, prior, seed)
    rates = p.rates[:, :1].repeat(1, len(prior), 1)
    for c in range(1, len(prior)):
        rates[:, c, 0], rates[:, c, c] = p.rates[:, 0, c], p.rates[:, 0, 0]
    return Planted(draw_votes(rates, p.classes, seed), p.classes, p.prior, rates)


@pytest.mark.parametrize("model", [Triplets, MeTaL])
@pytest.mark.parametrize("prior", [[0.55, 0.45], [0.2, 0.8]])
def test_planted_truth_of_two_classes(model: Any, prior: list[float]) -> None:
    p = planted(5000, 15, prior)
    m = model(2).fit(p.votes)
    assert float((m.rates - p.rates).abs().mean()) <= 0.015
    oracle = accuracy(posterior(p.votes, p.prior, p.rates), p.classes)
    assert accuracy(m.posterior(p.votes), p.classes) >= oracle - 0.002
    large = planted(20_000, 15, prior)
    assert float((model(2).fit(large.votes).prior - large.prior).abs().max()) <= 0.01


@pytest.mark.parametrize(("model", "source"), [(Triplets, even), (MeTaL, planted)])
def test_planted_truth_of_four_classes(model: Any, source: Any) -> None:
    p = source(5000, 15, [0.4, 0.3, 0.2, 0.1])
    m = model(4).fit(p.votes)
    assert float((m.rates - p.rates).abs().mean()) <= 0.015
    oracle = accuracy(posterior(p.votes, p.prior, p.rates), p.classes)
    assert accuracy(m.posterior(p.votes), p.classes) >= oracle - 0.002
    assert float((m.prior - p.prior).abs().max()) <= 0.02


def test_one_sided_sources_are_solved_too() -> None:
    """Two sources vote class 0 only, two class 1 only: no class alone has three voters."""
    right, wrong = torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.1, 0.0, 0.9])
    ham = torch.stack([right, wrong]).double()
    spam = ham.flip(0)[:, [1, 0, 2]]
    rates = torch.stack([ham, ham, spam, spam])
    classes = torch.multinomial(torch.tensor([0.7, 0.3]), 40_000, replacement=True)
    m = Triplets(2).fit(draw_votes(rates, classes, 0))
    assert float((m.rates - rates).abs().max()) < 0.03
    assert float(m.prior[0]) == pytest.approx(0.7, abs=0.03)


def test_a_dependent_pair_is_left_out() -> None:
    """Source 1 copies four of five votes of source 0, so their covariance is not that of rates."""
    p = planted(20_000, 6, [0.6, 0.4], seed=4)
    votes = p.votes.clone()
    copied = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.8
    votes[:, 1] = torch.where(copied, votes[:, 0], votes[:, 1])
    blind = Triplets(2, class_balance=[0.6, 0.4]).fit(votes)
    aware = Triplets(2, class_balance=[0.6, 0.4], dependencies=[(0, 1)]).fit(votes)
    errors = [float((m.rates[0] - p.rates[0]).abs().max()) for m in (blind, aware)]
    assert errors[1] < 0.03 < 0.08 < errors[0]


@pytest.mark.filterwarnings("ignore:.*equal votes in every row")
def test_copies_with_given_dependencies_count_as_one_source() -> None:
    p = planted(3000, 6, [0.6, 0.4])
    copied = torch.cat([p.votes, p.votes[:, [0, 0]]], 1)
    pairs = [(0, 6), (0, 7), (6, 7)]
    once = Triplets(2, class_balance="uniform").fit(p.votes)
    again = Triplets(2, class_balance="uniform", dependencies=pairs).fit(copied)
    torch.testing.assert_close(again.rates[:6], once.rates)


@pytest.mark.parametrize("pair", [(0, 0), (0, 9), (-1, 2), (0, 1, 2)])
def test_wrong_dependencies(pair: tuple[int, ...]) -> None:
    votes = planted(50, 5, [0.5, 0.5]).votes
    with pytest.raises(W2SError, match="expected two different sources of 0 to 4"):
        Triplets(2, dependencies=[pair]).fit(votes)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.integers(0, 10**6))
def test_rank_one_is_exact_on_exact_matrices(size: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a = (0.1 + torch.rand(size, generator=g)).double()
    signs = torch.where(torch.rand(size, generator=g) < 0.5, -1.0, 1.0).double()
    matrix = torch.outer(a * signs, a * signs) + torch.diag(torch.rand(size, generator=g).double())
    mask = 1 - torch.eye(size).double()
    torch.testing.assert_close(rank_one(matrix, mask, signs), a * signs)


def test_rank_one_finds_a_sign_against_the_expectation() -> None:
    a = torch.tensor([0.5, 0.4, 0.6, -0.2, 0.3]).double()
    mask = 1 - torch.eye(5).double()
    torch.testing.assert_close(rank_one(torch.outer(a, a), mask, torch.ones(5).double()), a)


def test_rank_one_is_near_the_least_squares_fit_of_a_noisy_matrix() -> None:
    from scipy.optimize import minimize

    g = torch.Generator().manual_seed(3)
    a = (0.2 + torch.rand(12, generator=g)).double()
    noise = 0.15 * torch.randn(12, 12, generator=g).double()
    matrix, mask = torch.outer(a, a) + noise + noise.T, 1 - torch.eye(12).double()

    def loss(values: np.ndarray) -> float:
        return float(((matrix - torch.from_numpy(np.outer(values, values))) * mask).square().sum())

    got = rank_one(matrix, mask, torch.ones(12).double())
    assert loss(got.numpy()) < 1.001 * minimize(loss, a.numpy()).fun


def test_rank_one_ignores_masked_entries() -> None:
    a = torch.tensor([0.5, 0.4, 0.6, 0.2, 0.3]).double()
    mask = 1 - torch.eye(5).double()
    mask[0, 1] = mask[1, 0] = 0
    matrix = torch.outer(a, a)
    matrix[0, 1] = matrix[1, 0] = 7.0
    torch.testing.assert_close(rank_one(matrix, mask, torch.ones(5).double()), a)


@pytest.mark.parametrize("model", [Triplets, MeTaL])
def test_sources_that_agree_less_often_than_chance(model: Any) -> None:
    p = planted(2000, 4, [0.5, 0.5], accuracy=(0.8, 0.9))
    votes = p.votes.clone()
    votes[:, ::2] = torch.where(votes[:, ::2] >= 0, 1 - votes[:, ::2], -1)
    votes[:, 3] = torch.randint(2, (2000,), generator=torch.Generator().manual_seed(0))
    with pytest.raises(W2SError, match="agree less often than chance"):
        model(2).fit(votes[:, [0, 1, 3]])


@pytest.mark.parametrize("model", [Triplets, MeTaL])
def test_missing_votes_have_rates_independent_of_the_class(model: Any) -> None:
    p = planted(2000, 6, [0.5, 0.5])
    m = model(2, abstain="missing").fit(p.votes)
    torch.testing.assert_close(m.rates[:, 0, 2], m.rates[:, 1, 2])
    torch.testing.assert_close(m.rates.sum(2), torch.ones(6, 2).double())
    with pytest.raises(W2SError, match="abstain is 'none'"):
        model(2, abstain="none")


def test_sources_that_never_abstain_have_no_rate_of_abstention() -> None:
    p = planted(2000, 6, [0.5, 0.5])
    votes = torch.where(p.votes < 0, 0, p.votes)
    for model in (Triplets, MeTaL):
        assert float(model(2).fit(votes).rates[:, :, 2].max()) == 0


@pytest.mark.parametrize("balance", [None, "uniform"])
def test_partial_fit_equals_one_fit(balance: str | None) -> None:
    p = planted(6000, 6, [0.6, 0.4])
    whole = Triplets(2, class_balance=balance).fit(p.votes)
    parts = Triplets(2, class_balance=balance)
    for batch in p.votes.split(2000):
        parts.partial_fit(batch)
    if balance is None:
        thirds = [third_moment(b, parts._weights, pooled=True) for b in p.votes.split(2000)]
        torch.testing.assert_close(parts._sums.third.total, sum(t.total for t in thirds))
    exact = balance is not None  # third moments: the weights are those of the first batch
    torch.testing.assert_close(parts.rates, whole.rates, rtol=0, atol=1e-9 if exact else 0.01)
    assert float((parts.prior - whole.prior).abs().max()) < 0.02


def test_partial_fit_of_metal_approaches_one_fit() -> None:
    p = planted(6000, 6, [0.6, 0.4])
    whole = MeTaL(2, class_balance=[0.6, 0.4]).fit(p.votes)
    parts = MeTaL(2, class_balance=[0.6, 0.4])
    for batch in p.votes.split(2000):
        parts.partial_fit(batch)
    torch.testing.assert_close(parts.rates, whole.rates, rtol=0, atol=1e-5)


def test_metal_reproduces_the_second_moments() -> None:
    p = planted(4000, 5, [0.5, 0.3, 0.2])
    m = MeTaL(3, class_balance=p.prior).fit(p.votes)
    x = torch.stack([p.votes == c for c in range(3)], 2).double()
    mu = m.rates[:, :, :3]
    for i, j in ((0, 1), (2, 4)):
        implied = mu[i].T @ torch.diag(p.prior) @ mu[j]
        observed = x[:, i].T @ x[:, j] / 4000
        assert float((implied - observed).abs().max()) < 0.005
        assert (
            float((observed - observed.sum(1, keepdim=True) * observed.sum(0)).abs().max()) > 0.02
        )


@pytest.mark.slow
def test_standard_errors_of_metal_are_the_spread_over_samples() -> None:
    first = planted(1500, 5, [0.6, 0.4], accuracy=(0.7, 0.9))
    rates, claimed = [], []
    for seed in range(15):
        g = torch.Generator().manual_seed(seed)
        classes = torch.multinomial(first.prior, 1500, replacement=True, generator=g)
        votes = draw_votes(first.rates, classes, seed)
        m = MeTaL(2, class_balance=first.prior).fit(votes)
        before = m.rates.clone()
        se = m.standard_errors(votes)
        torch.testing.assert_close(m.rates, before, rtol=0, atol=0)
        assert se.prior.tolist() == [0, 0]
        rates.append(m.rates)
        claimed.append(se.rates)
    ratio = torch.stack(rates).std(0) / torch.stack(claimed).mean(0)
    assert 0.75 < float(ratio.mean()) < 1.25


@pytest.mark.slow
def test_standard_errors_are_the_spread_over_samples() -> None:
    first = planted(2000, 6, [0.65, 0.35], accuracy=(0.7, 0.9))
    rates, priors, claimed, claimed_prior = [], [], [], []
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        classes = torch.multinomial(first.prior, 2000, replacement=True, generator=g)
        votes = draw_votes(first.rates, classes, seed)
        m = Triplets(2).fit(votes)
        se = m.standard_errors(votes)
        rates.append(m.rates)
        priors.append(m.prior)
        claimed.append(se.rates)
        claimed_prior.append(se.prior)
    ratio = torch.stack(rates).std(0) / torch.stack(claimed).mean(0)
    assert 0.8 < float(ratio.mean()) < 1.2
    ratio = torch.stack(priors).std(0) / torch.stack(claimed_prior).mean(0)
    assert 0.7 < float(ratio.mean()) < 1.3
    with pytest.raises(W2SError, match="59 rows; expected at least 60"):
        m.standard_errors(votes[:59])
