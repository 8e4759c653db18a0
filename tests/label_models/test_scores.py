"""Continuous scores: planted classes, an exact covariance, dependent scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from w2s_fast import W2SError
from w2s_fast.label_models import GaussianScores


def planted_scores(
    n: int, share: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scores, classes, class means (2, m), standard deviations (m,)) of six sources."""
    g = torch.Generator().manual_seed(seed)
    means = torch.tensor(
        [[0.0, 5.0, -1.0, 0.0, 2.0, 0.0], [1.5, 6.0, 1.0, 0.8, 32.0, 0.3]]
    ).double()
    spread = torch.tensor([1.0, 0.8, 1.5, 1.0, 20.0, 1.0]).double()
    classes = (torch.rand(n, generator=g) < share).long()
    noise = torch.randn(n, 6, generator=g).double()
    return means[classes] + spread * noise, classes, means, spread


def bayes(x: torch.Tensor, means: torch.Tensor, spread: torch.Tensor, share: float) -> torch.Tensor:
    log = -0.5 * ((x[:, None] - means) / spread).square().sum(2)
    return (log + torch.tensor([1 - share, share]).log()).softmax(1)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.8])
def test_planted_classes(share: float) -> None:
    x, classes, means, spread = planted_scores(20_000, share)
    m = GaussianScores().fit(x)
    assert float(m.prior[1]) == pytest.approx(share, abs=0.03)
    assert float(((m.means - means) / spread).abs().max()) < 0.1
    assert float((m.within.diagonal().sqrt() / spread - 1).abs().max()) < 0.05
    oracle = bayes(x, means, spread, share)
    got = m.posterior(x)
    assert float((got - oracle).abs().mean()) < 0.02
    right = [float((q.argmax(1) == classes).double().mean()) for q in (got, oracle)]
    assert right[0] >= right[1] - 0.003


def test_the_score_orders_rows_as_the_best_linear_predictor() -> None:
    x, _, _, _ = planted_scores(2000, 0.4)
    m = GaussianScores(class_balance=[0.6, 0.4]).fit(x)
    delta = m.means[1] - m.means[0]
    total = m.within + 0.24 * torch.outer(delta, delta)
    linear = torch.linalg.solve(total, 0.24 * delta)
    log_odds = m.posterior(x).logit()[:, 1]
    assert float(torch.corrcoef(torch.stack([x @ linear, log_odds]))[0, 1]) > 1 - 1e-9


def test_units_of_the_scores_do_not_matter() -> None:
    x, _, _, _ = planted_scores(1000, 0.4)
    scale = torch.tensor([1e-3, 1.0, 10.0, 1e4, 1.0, 5.0]).double()
    plain = GaussianScores().fit(x).posterior(x)
    torch.testing.assert_close(GaussianScores().fit(x * scale + 7).posterior(x * scale + 7), plain)


def test_copied_scores_count_once_if_their_dependence_is_given() -> None:
    x, _, _, _ = planted_scores(4000, 0.4)
    copied = torch.cat([x, x[:, [0]], x[:, [0]]], 1)
    pairs = [(0, 6), (0, 7), (6, 7)]
    once = GaussianScores("uniform").fit(x).posterior(x)
    again = GaussianScores("uniform", pairs).fit(copied).posterior(copied)
    blind = GaussianScores("uniform").fit(copied).posterior(copied)
    torch.testing.assert_close(again, once, rtol=0, atol=1e-4)
    assert float((blind - once).abs().mean()) > 0.05


def test_partial_fit_equals_one_fit() -> None:
    x, _, _, _ = planted_scores(3000, 0.4)
    whole, parts = GaussianScores().fit(x), GaussianScores()
    for batch in x.split(1000):
        parts.partial_fit(batch)
    assert float((whole.means - parts.means).abs().max()) < 0.2
    fixed = GaussianScores("uniform").fit(x)
    parts = GaussianScores("uniform")
    for batch in x.split(1000):
        parts.partial_fit(batch)
    torch.testing.assert_close(parts.means, fixed.means)
    torch.testing.assert_close(parts.within, fixed.within)


@pytest.mark.slow
def test_standard_errors_are_the_spread_over_samples() -> None:
    estimates, claimed = [], []
    for seed in range(40):
        x, _, _, _ = planted_scores(2000, 0.35, seed)
        m = GaussianScores().fit(x)
        se = m.standard_errors(x)
        estimates.append(torch.cat([m.prior, m.means.flatten()]))
        claimed.append(torch.cat([se.prior, se.means.flatten()]))
    ratio = torch.stack(estimates).std(0) / torch.stack(claimed).mean(0)
    assert 0.75 < float(ratio.mean()) < 1.25


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.1, np.nan, 0.2]] * 2, "score of source 1 for row 0 is nan"),
        ([[0.1, 0.3, 0.2], [0.1, 0.3, np.inf]], "score of source 2 for row 1 is inf"),
        ([[0.1, 0.2], [0.4, 0.2]], "2 sources; expected at least 3"),
        ([[0.1, 0.2, 0.5], [0.4, 0.2, 0.1]], "source 1 has the same score in every row"),
        ([0.1, 0.2], "scores have shape"),
        ([["a"]], "cannot be read as numbers"),
    ],
)
def test_wrong_scores_are_named(scores: Any, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        GaussianScores().fit(scores)


def test_wrong_uses() -> None:
    x, _, _, _ = planted_scores(50, 0.4)
    with pytest.raises(W2SError, match="call fit"):
        GaussianScores().posterior(x)
    with pytest.raises(W2SError, match="class_balance is 'majority'; expected 'uniform'"):
        GaussianScores("majority")
    with pytest.raises(W2SError, match="class_balance sums to 0.9"):
        GaussianScores([0.5, 0.4])
    with pytest.raises(W2SError, match="3 sources; expected 6"):
        GaussianScores().fit(x).posterior(x[:, :3])
    with pytest.raises(W2SError, match="agree less often than chance"):
        GaussianScores().fit(torch.stack([x[:, 0], -x[:, 1], x[:, 5] * 0.01 - x[:, 2]], 1))
    with pytest.raises(W2SError, match="2 rows; expected at least 3"):
        GaussianScores().fit(x).partial_fit(x[:2])
