"""Gates over sources: informative ones stay, noise and copies go."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.trust import fit_source_gate


def planted(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return votes of three informative, three random and two copied sources, and true classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n)
    good = [
        np.where(rng.random(n) < a, truth, rng.integers(0, n_classes, n)) for a in (0.85, 0.75, 0.7)
    ]
    votes = np.stack([*good, *rng.integers(0, n_classes, (3, n))], 1)
    votes[rng.random(votes.shape) < 0.2] = -1
    return np.concatenate([votes, votes[:, :2]], 1), truth


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("seed", range(2))
def test_informative_sources_stay_and_noise_and_copies_go(n_classes: int, seed: int) -> None:
    votes, truth = planted(3000, n_classes, seed)
    gate = fit_source_gate(votes[:1000], truth[:1000], n_classes)
    assert gate.kept.tolist() == [True] * 3 + [False] * 5
    assert (gate.weights[3:] == 0).all()
    assert gate.weights[0] > gate.weights[2] > 1  # 85 and 70 of 100 are not guesses
    assert gate.path.shape == (20, 8) and (gate.path[-1, 3:6] < 0.01).all()
    posterior = gate.posterior(votes[1000:])
    assert posterior.sum(1) == pytest.approx(1, abs=1e-5) and posterior.dtype == np.float32
    prior = np.exp(gate.intercept) / np.exp(gate.intercept).sum()
    assert gate.posterior(np.full((1, 8), -1))[0] == pytest.approx(prior, abs=1e-6)
    right = (posterior.argmax(1) == truth[1000:]).mean()
    assert right > (votes[1000:, 0] == truth[1000:]).mean() + 0.1
    assert right > 0.85


def test_probabilities_are_sources_too() -> None:
    """Their evidence is of graded strength, and NaN is an abstention."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 1200)
    logits = np.stack([rng.normal(s * (2 * truth - 1), 1) for s in (1.0, 0.7, 0.0)])
    one = 1 / (1 + np.exp(-2 * logits))
    sources = np.stack([1 - one, one], 2)
    sources[1, ::4] = np.nan
    gate = fit_source_gate(sources[:, :600], truth[:600], 2)
    assert gate.kept.tolist() == [True, True, False]
    test = gate.posterior(sources[:, 600:])
    assert (test.argmax(1) == truth[600:]).mean() > 0.83
    silent = np.full((3, 1, 2), np.nan)
    assert gate.posterior(silent)[0, 1] == pytest.approx(truth[:600].mean(), abs=0.1)


def test_a_higher_price_keeps_fewer_sources() -> None:
    votes, truth = planted(600, 2, 1)
    counts = [int(fit_source_gate(votes, truth, 2, lam=p).kept.sum()) for p in (0.0, 0.01, 0.1)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    with pytest.raises(W2SError, match="lam is 5 nats, more than any of 8 sources saves"):
        fit_source_gate(votes, truth, 2, lam=5)


def test_the_seed_is_all_the_chance() -> None:
    votes, truth = planted(300, 2, 2)
    one, two = (fit_source_gate(votes, truth, 2, seed=5) for _ in range(2))
    assert np.array_equal(one.weights, two.weights) and np.array_equal(one.path, two.path)


def test_bad_input_is_named() -> None:
    votes, truth = planted(100, 2, 3)
    with pytest.raises(W2SError, match="sources have shape"):
        fit_source_gate(votes.astype(float), truth, 2)
    bad = votes.copy()
    bad[7, 3] = 2
    with pytest.raises(W2SError, match="vote of source 3 for row 7 is 2"):
        fit_source_gate(bad, truth, 2)
    with pytest.raises(W2SError, match="labels have shape"):
        fit_source_gate(votes, truth[:5], 2)
    for name, value in {"lam": -1, "tau": 0, "epochs": 1, "steps": 0}.items():
        with pytest.raises(W2SError, match=f"{name} is {value}"):
            fit_source_gate(votes, truth, 2, **{name: value})
    gate = fit_source_gate(votes, truth, 2, lam=0.001)
    with pytest.raises(W2SError, match="7 sources of votes; expected 8 of votes"):
        gate.posterior(votes[:, :7])
