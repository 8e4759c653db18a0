"""The score of Weaver: the formula, its limits, and gains where verifiers are independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.planted_verifiers import planted_verifiers
from scipy.special import expit
from scipy.stats import multivariate_normal

from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError
from w2s_fast.label_models import DawidSkene, GaussianScores, MeTaL, Triplets, posterior

RATES = np.array(
    [
        [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]],
        [[0.5, 0.2, 0.3], [0.1, 0.7, 0.2]],
        [[1.0, 0.0, 0.0], [0.4, 0.6, 0.0]],
    ]
)


def test_the_score_is_the_sum_of_log_ratios() -> None:
    got = V.weaver_log_odds([[1, 0, 1], [0, -1, 0]], 0.3, RATES)
    prior = np.log(0.3 / 0.7)
    first = prior + np.log(0.8 / 0.1) + np.log(0.1 / 0.5) + np.log(0.6 / 0.01)
    second = prior + np.log(0.2 / 0.9) + np.log(0.2 / 0.3) + np.log(0.4 / 0.99)
    np.testing.assert_allclose(got, [first, second], rtol=1e-14)


def test_a_prior_of_both_classes_is_the_same() -> None:
    votes = [[1, 0, -1]]
    assert V.weaver_log_odds(votes, 0.3, RATES) == V.weaver_log_odds(votes, [0.7, 0.3], RATES)


def test_without_limits_it_is_the_logit_of_the_posterior() -> None:
    rng = np.random.default_rng(0)
    rates = rng.dirichlet([3, 3, 2], (6, 2))
    votes = rng.integers(-1, 2, (50, 6))
    log_odds = V.weaver_log_odds(votes, 0.4, rates, clip=1e-9)
    exact = posterior(votes, [0.6, 0.4], rates)[:, 1].numpy()
    np.testing.assert_allclose(expit(log_odds), exact, rtol=1e-12)


def test_many_verifiers_do_not_tie_as_the_posterior_does() -> None:
    rates = np.tile([[[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]], (60, 1, 1))
    votes = np.ones((2, 60), int)
    votes[0, 0] = 0
    scores = V.weaver_log_odds(votes, 0.5, rates)
    assert expit(scores[0]) == expit(scores[1]) == 1
    assert V.select(scores, ["p", "p"]).tolist() == [1]


def test_gaussian_log_odds_are_those_of_the_densities() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    within, means = root @ root.T + np.eye(4), rng.normal(size=(2, 4))
    scores = rng.normal(size=(30, 4))
    densities = [multivariate_normal(mean, within).logpdf(scores) for mean in means]
    got = V.gaussian_log_odds(scores, 0.2, means, within)
    np.testing.assert_allclose(got, np.log(0.25) + densities[1] - densities[0], rtol=1e-9)


def test_gaussian_log_odds_do_not_tie_where_the_posterior_rounds() -> None:
    """Also 1000 standard deviations away, where both probabilities are 0 or 1."""
    data = planted_verifiers(n=500, responses=4, m=5)
    model = GaussianScores().fit(data.scores)
    parameters = model.prior, model.means, model.within
    log_odds = V.gaussian_log_odds(data.scores, *parameters)
    np.testing.assert_allclose(expit(log_odds), model.posterior(data.scores)[:, 1], atol=1e-12)
    far = np.array([[1e3] * 5, [1e3] * 4 + [2e3]])
    assert model.posterior(far)[:, 1].tolist() == [1, 1]
    assert np.diff(V.gaussian_log_odds(far, *parameters)) > 0


def test_wrong_parameters_of_scores_are_named() -> None:
    means, within = np.array([[0.0, 0.0], [1.0, 1.0]]), np.eye(2)
    with pytest.raises(W2SError, match="scores have 3 verifiers; expected 2"):
        V.gaussian_log_odds([[1, 2, 3]], 0.5, means, within)
    with pytest.raises(W2SError, match=r"means have shape \(3, 2\); expected \(2, verifiers\)"):
        V.gaussian_log_odds([[1, 2]], 0.5, np.ones((3, 2)), within)
    for wrong in (np.ones((2, 2)), np.ones((3, 2))):
        with pytest.raises(W2SError, match="within has shape .*singular or not square"):
            V.gaussian_log_odds([[1, 2]], 0.5, means, wrong)
    with pytest.raises(W2SError, match="prior sums to 1.2"):
        V.gaussian_log_odds([[1, 2]], [0.6, 0.6], means, within)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n", [3, 5, 7, 13, 1001])
def test_equal_votes_have_equal_scores(n: int, order: Any) -> None:
    """Ties are ties: rounding does not depend on the row, as in products of matrices it may."""
    rng = np.random.default_rng(2)
    votes = np.asarray(np.tile(rng.integers(0, 2, (1, 37)), (n, 1)), order=order)
    rates = rng.dirichlet([3, 3, 1], (37, 2))
    assert len(np.unique(V.weaver_log_odds(votes, 0.2, rates))) == 1


@pytest.mark.parametrize("model", [DawidSkene, Triplets, MeTaL])
def test_independent_verifiers_beat_their_average(model: Any) -> None:
    data = planted_verifiers(n=1500, responses=6, m=9)
    votes = V.binarize(data.scores, 0.5)
    fitted = model(2).fit(votes)
    weaver = V.weaver_log_odds(votes, fitted.prior, fitted.rates)
    truth = np.zeros((9, 2, 3))
    truth[:, 0, 1], truth[:, 1, 1] = data.fpr, data.tpr
    truth[:, :, 0] = 1 - truth[:, :, 1]
    best = V.weaver_log_odds(votes, data.gold.mean(), truth)
    accuracy = {
        name: V.selection_accuracy(scores, data.problems, data.gold)
        for name, scores in {
            "weaver": weaver, "true rates": best, "average": V.naive_average(votes),
        }.items()
    }  # fmt: skip
    assert accuracy["weaver"] > accuracy["average"] + 0.01
    assert accuracy["weaver"] > accuracy["true rates"] - 0.005
    singles = [V.selection_accuracy(v, data.problems, data.gold) for v in votes.T]
    assert accuracy["weaver"] > max(singles) + 0.03


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.5, 0.6], "prior sums to 1.1; expected 1"),
        ([0.2, 0.2], "prior sums to 0.4; expected 1"),
        (0.0, r"prior\[1\] is 0.0|prior\[0\] is 1.0"),
        (1.0, r"prior\[0\] is 0.0|prior\[1\] is 1.0"),
        (1.5, r"prior\[0\] is -0.5"),
        (np.nan, r"prior\[0\] is nan"),
        ([1.0, 0.0], r"prior\[0\] is 1.0"),
        ([0.2, 0.3, 0.5], r"prior has shape \(3,\)"),
    ],
)
def test_a_wrong_prior_is_named(prior: Any, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        V.weaver_log_odds([[1, 0, 1]], prior, RATES)


def test_wrong_votes_and_rates_are_named() -> None:
    with pytest.raises(W2SError, match="votes have 2 sources"):
        V.weaver_log_odds([[1, 0]], 0.5, RATES)
    with pytest.raises(W2SError, match=r"rates\[1, 0\] are .*sum to 1"):
        V.weaver_log_odds([[1, 0, 1]], 0.5, RATES * [[[1.0]], [[1.1]], [[1.0]]])
    with pytest.raises(W2SError, match=r"rates have shape \(3, 2\)"):
        V.weaver_log_odds([[1, 0, 1]], 0.5, RATES[:, :, 0])
    with pytest.raises(W2SError, match="clip is 0.5"):
        V.weaver_log_odds([[1, 0, 1]], 0.5, RATES, clip=0.5)
    with pytest.raises(W2SError, match=r"rates\[0, 1\] are"):
        V.weaver_log_odds([[1, 0, 1]], 0.5, np.where(RATES == 0.8, np.nan, RATES))
