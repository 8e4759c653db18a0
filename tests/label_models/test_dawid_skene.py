"""Dawid-Skene: planted rates, golden numbers of another implementation, and the direct maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.crowd_votes import CONFUSION, POSTERIORS, PRIOR, VOTES
from helpers.planted_votes import draw_votes, planted
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast import W2SError
from w2s_fast.label_models import DawidSkene, posterior
from w2s_fast.label_models.likelihood_errors import likelihood_errors
from w2s_fast.label_models.votes import check_votes, one_hot

TIGHT = {"smoothing": 1e-9, "tolerance": 1e-12}


def accuracy(probs: torch.Tensor, classes: torch.Tensor) -> float:
    return float((probs.argmax(1) == classes).double().mean())


@pytest.mark.parametrize("prior", [[0.55, 0.45], [0.2, 0.8], [0.4, 0.3, 0.2, 0.1]])
def test_planted_truth(prior: list[float]) -> None:
    p = planted(5000, 15, prior)
    m = DawidSkene(len(prior)).fit(p.votes)
    assert float((m.rates - p.rates).abs().mean()) <= 0.015
    oracle = accuracy(posterior(p.votes, p.prior, p.rates), p.classes)
    assert accuracy(m.posterior(p.votes), p.classes) >= oracle - 0.002
    large = planted(20_000, 15, prior)
    assert float((DawidSkene(len(prior)).fit(large.votes).prior - large.prior).abs().max()) <= 0.01


def test_golden_numbers_of_crowd_kit() -> None:
    m = DawidSkene(3, abstain="missing", **TIGHT).fit(VOTES)
    assert m.prior.tolist() == pytest.approx(PRIOR, abs=1e-5)
    probs = m.posterior(VOTES)
    for row, expected in POSTERIORS.items():
        assert probs[row].tolist() == pytest.approx(expected, abs=1e-5)
    confusion = m.rates[0, :, :3] / m.rates[0, :, :3].sum(1, keepdim=True)
    np.testing.assert_allclose(confusion, CONFUSION, atol=1e-5)


def test_one_coin_is_the_maximum_of_its_likelihood() -> None:
    from scipy.optimize import minimize

    votes = planted(60, 4, [0.6, 0.4], seed=3).votes
    x = torch.stack([votes == 0, votes == 1], 2).double().numpy()  # (n, m, c)

    def loss(theta: np.ndarray) -> float:
        a, pi = 1 / (1 + np.exp(-theta[:4])), 1 / (1 + np.exp(-theta[4]))
        cast = x.sum(2)
        log = x * np.log(a)[:, None] + (cast[:, :, None] - x) * np.log(1 - a)[:, None]
        used = cast.sum(1) > 0
        joint = log.sum(1) + np.log([pi, 1 - pi])
        return -np.logaddexp(joint[:, 0], joint[:, 1])[used].sum()

    best = minimize(loss, np.ones(5), tol=1e-12)
    m = DawidSkene(2, abstain="missing", one_coin=True, **TIGHT).fit(votes)
    expected = 1 / (1 + np.exp(-best.x))
    got = m.rates[:, 0, 0] / (1 - m.rates[:, 0, 2])
    np.testing.assert_allclose(got, expected[:4], atol=1e-4)
    assert float(m.prior[0]) == pytest.approx(expected[4], abs=1e-4)


@pytest.mark.parametrize("abstain", ["symbol", "missing"])
@pytest.mark.parametrize("one_coin", [False, True])
def test_rates_are_distributions(abstain: str, one_coin: bool) -> None:
    p = planted(300, 5, [0.5, 0.3, 0.2])
    m = DawidSkene(3, abstain=abstain, one_coin=one_coin).fit(p.votes)
    torch.testing.assert_close(m.rates.sum(2), torch.ones(5, 3, dtype=torch.float64))
    torch.testing.assert_close(m.posterior(p.votes), posterior(p.votes, m.prior, m.rates))
    depends = not torch.allclose(m.rates[:, :1, 3], m.rates[:, :, 3])
    assert depends == (abstain == "symbol" and not one_coin)


def test_abstentions_carry_information_only_as_a_symbol() -> None:
    """Sources vote one class only, and abstain elsewhere: missing votes would leave nothing."""
    prior = torch.tensor([0.5, 0.5]).double()
    right, wrong = torch.tensor([0.7, 0.0, 0.3]), torch.tensor([0.1, 0.0, 0.9])
    one = torch.stack([right, wrong]).double()
    rates = torch.stack([one, one, one, one.flip(0)[:, [1, 0, 2]], one.flip(0)[:, [1, 0, 2]]])
    classes = torch.randint(2, (4000,), generator=torch.Generator().manual_seed(1))
    votes = draw_votes(rates, classes, 0)
    m = DawidSkene(2).fit(votes)
    assert float((m.rates - rates).abs().max()) < 0.05
    assert (
        accuracy(m.posterior(votes), classes)
        >= accuracy(posterior(votes, prior, rates), classes) - 0.01
    )
    with pytest.raises(
        W2SError, match="no better than chance.*one class only need abstain='symbol'"
    ):
        DawidSkene(2, abstain="missing", class_balance="uniform").fit(votes)


def test_uncovered_rows_do_not_move_a_model_of_missing_votes() -> None:
    p = planted(500, 5, [0.7, 0.3])
    empty = torch.full((400, 5), -1)
    alone = DawidSkene(2, abstain="missing").fit(p.votes)
    padded = DawidSkene(2, abstain="missing").fit(torch.cat([p.votes, empty]))
    torch.testing.assert_close(alone.prior, padded.prior)
    torch.testing.assert_close(padded.posterior(empty), padded.prior.expand(400, 2))
    torch.testing.assert_close(alone.posterior(p.votes), padded.posterior(p.votes))


def test_anchor_keeps_rare_sources_near_the_assumed_precision() -> None:
    p = planted(2000, 6, [0.5, 0.5])
    votes = p.votes.clone()
    votes[:, 5] = -1
    votes[:2, 5] = 1 - p.classes[:2]  # a source with two votes, both wrong
    free = DawidSkene(2).fit(votes).rates[5, :, :2]
    kept = DawidSkene(2, anchor=50.0, precision=0.9).fit(votes).rates[5, :, :2]
    share = kept.diagonal().sum() / kept.sum()
    assert free.diagonal().sum() < 0.2 * free.sum()
    assert float(share) == pytest.approx(0.9 * 50 / 52, abs=0.03)
    heavy = DawidSkene(2, anchor=1e5).fit(votes)
    assert float(heavy.rates[:5, :, 2].mean()) == pytest.approx(
        float((votes[:, :5] < 0).double().mean()), abs=0.01
    )


@pytest.mark.parametrize(
    ("balance", "expected"),
    [("uniform", [0.5, 0.5]), ([0.9, 0.1], [0.9, 0.1]), ("majority", None)],
)
def test_fixed_class_balance(balance: Any, expected: list[float] | None) -> None:
    p = planted(400, 5, [0.7, 0.3])
    m = DawidSkene(2, class_balance=balance).fit(p.votes)
    if expected is None:
        from w2s_fast.label_models.majority import majority_balance

        expected = majority_balance(p.votes, 2).tolist()
    assert m.prior.tolist() == pytest.approx(expected)
    assert m.standard_errors(p.votes).prior.tolist() == [0, 0]


def test_sources_worse_than_chance_in_sum() -> None:
    p = planted(3000, 7, [0.9, 0.1], accuracy=(0.75, 0.9))
    flipped = torch.where(p.votes >= 0, 1 - p.votes, -1)
    with pytest.raises(W2SError, match="no better than chance in sum"):
        DawidSkene(2, class_balance=[0.9, 0.1], one_coin=True).fit(flipped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"abstain": "sybmol"},
            "abstain is 'sybmol'; expected 'symbol' or 'missing'; did you mean",
        ),
        ({"class_balance": "uniforms"}, "class_balance is 'uniforms'.*did you mean 'uniform'"),
        ({"class_balance": [0.5, 0.4]}, "class_balance sums to 0.9"),
        ({"anchor": -1}, "anchor is -1; expected a number at least 0"),
        ({"precision": 1.5}, "precision is 1.5; expected a number from 0 to 1"),
        ({"smoothing": 0}, "smoothing is 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=message):
        DawidSkene(2, **options)


@pytest.mark.slow
def test_standard_errors_are_the_spread_over_samples() -> None:
    """Sixty draws from the same rates: errors in units of the standard error have unit spread."""
    first = planted(1500, 5, [0.6, 0.4], accuracy=(0.7, 0.9))
    scores, of_prior, spread, claimed = [], [], [], []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        classes = torch.multinomial(first.prior, 1500, replacement=True, generator=g)
        votes = draw_votes(first.rates, classes, seed)
        m = DawidSkene(2).fit(votes)
        se = m.standard_errors(votes)
        scores.append((m.rates - first.rates) / se.rates)
        of_prior.append((m.prior - first.prior) / se.prior)
        coin = DawidSkene(2, one_coin=True, abstain="missing").fit(votes)
        spread.append(coin.rates[:, 0, 0])
        claimed.append(coin.standard_errors(votes).rates[:, 0, 0])
    assert 0.9 < float(torch.stack(scores).std()) < 1.1
    assert 0.75 < float(torch.stack(of_prior).std()) < 1.25
    ratio = torch.stack(spread).std(0).mean() / torch.stack(claimed).mean()
    assert 0.75 < float(ratio) < 1.25


def test_standard_errors_equal_those_of_free_logits() -> None:
    """Scores by autograd, without redundant parameters, at the true rates: not at the maximum."""
    p = planted(400, 3, [0.6, 0.4], accuracy=(0.7, 0.8))
    votes = p.votes
    symbols = torch.where(votes < 0, 2, votes)

    def probabilities(theta: torch.Tensor) -> torch.Tensor:
        prior = torch.cat([theta[:1], theta.new_zeros(1)]).softmax(0)
        logits = torch.cat([theta[1:].view(3, 2, 2), theta.new_zeros(3, 2, 1)], 2)
        return torch.cat([prior, logits.softmax(2).flatten()])

    def log_likelihood(theta: torch.Tensor) -> torch.Tensor:
        values = probabilities(theta)
        rates = values[2:].view(3, 2, 3)
        terms = torch.stack([rates[j, :, symbols[:, j]].T for j in range(3)]).log().sum(0)
        return (values[:2].log() + terms).logsumexp(1)

    free = (p.rates[:, :, :2] / p.rates[:, :, 2:]).log().flatten()
    theta = torch.cat([(p.prior[0] / p.prior[1]).log()[None], free])
    scores = torch.autograd.functional.jacobian(log_likelihood, theta)
    covariance = torch.linalg.inv(scores.T @ scores)
    jacobian = torch.autograd.functional.jacobian(probabilities, theta)
    expected = (jacobian @ covariance @ jacobian.T).diagonal().sqrt()
    data = one_hot(check_votes(votes, 2), 2)
    options = {"missing": False, "one_coin": False, "fixed_prior": False}
    se = likelihood_errors(data, p.prior, p.rates, **options)
    torch.testing.assert_close(
        torch.cat([se.prior, se.rates.flatten()]), expected, rtol=1e-5, atol=1e-9
    )


def test_standard_errors_of_too_many_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2s_fast.label_models import likelihood_errors as module

    monkeypatch.setattr(module, "MAX_PARAMETERS", 50)
    p = planted(100, 5, [0.5, 0.5])  # 5 x 2 x 3 rates and 2 class probabilities
    assert DawidSkene(2).fit(p.votes).standard_errors(p.votes).rates.shape == (5, 2, 3)
    p = planted(100, 9, [0.5, 0.5])
    with pytest.raises(W2SError, match="56 x 56 parameters; expected at most 50"):
        DawidSkene(2).fit(p.votes).standard_errors(p.votes)


def test_partial_fit_approaches_the_planted_rates() -> None:
    p = planted(40_000, 8, [0.6, 0.4])
    streamed = DawidSkene(2)
    first = None
    for batch in p.votes.split(1000):
        streamed.partial_fit(batch)
        first = first if first is not None else float((streamed.rates - p.rates).abs().mean())
    error = float((streamed.rates - p.rates).abs().mean())
    assert error < 0.5 * first and error < 0.01
    assert abs(float(streamed.prior[0]) - 0.6) < 0.02


def test_partial_fit_counts_every_row_once() -> None:
    p = planted(900, 5, [0.6, 0.4])
    m = DawidSkene(2)
    for batch in p.votes.split(300):
        m.partial_fit(batch)
    assert m._counts.n_rows == 900
    assert float(m._counts.classes.sum()) == pytest.approx(900)
    assert float(m._counts.votes.sum()) == pytest.approx(int((p.votes >= 0).sum()), rel=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(3, 6))
def test_order_of_rows_and_sources_does_not_matter(seed: int, k: int, m: int) -> None:
    p = planted(80, m, [1 / k] * k, seed=seed)
    g = torch.Generator().manual_seed(seed)
    rows, sources = torch.randperm(80, generator=g), torch.randperm(m, generator=g)
    options = {"anchor": 2.0, "tolerance": 0.0, "max_iter": 20}
    plain = DawidSkene(k, **options).fit(p.votes).posterior(p.votes)
    shuffled = p.votes[rows][:, sources]
    other = DawidSkene(k, **options).fit(shuffled).posterior(shuffled)
    torch.testing.assert_close(plain[rows], other, atol=1e-6, rtol=0)


def test_many_sources_do_not_underflow() -> None:
    p = planted(60, 3000, [0.5, 0.5])
    probs = DawidSkene(2).fit(p.votes).posterior(p.votes)
    assert bool(probs.isfinite().all()) and accuracy(probs, p.classes) == 1.0


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (torch.full((2, 2, 2), 0.5), "rates have shape"),
        (torch.full((2, 2, 3), 0.5), "rates.0, 0. sum to 1.5"),
        (torch.tensor([[[1.5, -0.5, 0.0]] * 2] * 2), "rates.0, 0, 0. is 1.5"),
        (torch.full((3, 2, 3), 1 / 3), "votes have 2 sources; the model was fitted on 3"),
    ],
)
def test_posterior_checks_its_rates(rates: torch.Tensor, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        posterior([[0, 1]], [0.5, 0.5], rates)


def test_posterior_by_hand() -> None:
    rates = [[[0.6, 0.2, 0.2], [0.1, 0.5, 0.4]], [[0.9, 0.1, 0.0], [0.3, 0.7, 0.0]]]
    got = posterior([[0, 1], [-1, 0]], [0.4, 0.6], rates)
    first = np.array([0.4 * 0.6 * 0.1, 0.6 * 0.1 * 0.7])
    second = np.array([0.4 * 0.2 * 0.9, 0.6 * 0.4 * 0.3])
    np.testing.assert_allclose(got, [first / first.sum(), second / second.sum()])
