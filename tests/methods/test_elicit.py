"""What the untrained student knows: zero-shot answers, truth directions and the posterior."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.methods import Targets, make_method
from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._channel import clipped, estimate
from w2s_fast.methods._direction import ccs_loss, consistent, normalised, principal, truth
from w2s_fast.methods.ccs import CCS
from w2s_fast.methods.elicit import Elicit
from w2s_fast.methods.posterior import Posterior


def _soft(hard: np.ndarray, classes: int, top: float = 1.0) -> np.ndarray:
    rest = (1 - top) / (classes - 1)
    return np.where(np.eye(classes, dtype=bool)[hard], top, rest).astype(np.float32)


def _accuracy(out: Targets, gold: np.ndarray) -> float:
    return float((out.probs.argmax(1) == gold).mean())


def test_calibration_gives_the_balance_and_keeps_the_odds_between_rows() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 200)
    used = np.arange(200) % 4 != 0
    balance = np.array([0.2, 0.7, 0.1])
    q = matched(p, balance, used)
    assert np.abs(q[used].mean(0) - balance).max() < 1e-7
    shift = np.log(q / p)
    shift -= shift[:, :1]  # the same for all rows
    assert np.ptp(shift, axis=0).max() < 1e-6
    again = matched(q, balance, used)
    assert np.abs(again - q).max() < 1e-6
    biased = p * np.array([9.0, 1.0, 3.0])  # what a bias did is undone
    assert np.abs(matched(biased / biased.sum(1, keepdims=True), balance, used) - q).max() < 1e-6


def test_calibration_of_sure_answers_is_finite() -> None:
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    q = matched(p, np.array([0.5, 0.5]), np.ones(4, dtype=bool))
    assert q.mean(0) == pytest.approx([0.5, 0.5], abs=1e-6) and np.isfinite(q).all()


def test_elicit_takes_the_answers_and_keeps_weights() -> None:
    weak = Targets(_soft(np.array([0, 1, 1, 0]), 2, 0.75), np.array([1, 0, 2, 1], dtype=np.float32))
    prior = Targets(np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]], dtype=np.float32))
    plain = Elicit(calibrate="none").zero_shot(weak, prior, seed=0)
    assert np.array_equal(plain.probs, prior.probs)
    assert plain.weight is not None and plain.weight.tolist() == [1, 0, 2, 1]
    out = Elicit().zero_shot(weak, prior, seed=0)
    assert out.probs[weak.used].mean(0) == pytest.approx(balance_of(weak.probs, weak.used))
    assert out.probs[:, 1].argsort().tolist() == prior.probs[:, 1].argsort().tolist()


# Posterior

CONFUSION = np.array([[0.85, 0.1, 0.05], [0.25, 0.6, 0.15], [0.05, 0.35, 0.6]])


def _two_sources(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gold, calibrated beliefs that are right in about 7 of 10 rows, and labels by CONFUSION."""
    rng = np.random.default_rng(seed)
    belief = rng.dirichlet(np.full(3, 0.7), n)
    gold = np.array([rng.choice(3, p=row) for row in belief])
    label = np.array([rng.choice(3, p=CONFUSION[y]) for y in gold])
    return gold, belief, label


def test_em_recovers_the_confusion_and_beats_both_sources() -> None:
    gold, belief, label = _two_sources(6000, seed=0)
    channel = estimate(belief, _soft(label, 3), np.ones(6000, dtype=bool))
    assert np.abs(channel.confusion - CONFUSION).max() < 0.03
    right = [(p.argmax(1) == gold).mean() for p in (channel.posterior, belief, _soft(label, 3))]
    assert right[0] > max(right[1:]) + 0.05
    oracle = np.log(clipped(belief)) + np.log(CONFUSION[:, label]).T
    assert right[0] > (oracle.argmax(1) == gold).mean() - 0.005


def test_em_raises_the_likelihood_and_stops_where_it_is_fixed() -> None:
    _, belief, label = _two_sources(400, seed=1)
    weak, used = _soft(label, 3, 0.9), np.arange(400) < 350
    prior = clipped(belief)[used]

    def likelihood(limit: int) -> float:
        c = estimate(belief, weak, used, limit=limit).confusion
        by_class = weak[used].astype(np.float64) @ c.T
        return float(np.log((prior * by_class).sum(1)).sum() + np.log(c).sum())

    trace = [likelihood(k) for k in (1, 2, 3, 5, 10, 50)]
    assert all(b > a for a, b in zip(trace, trace[1:], strict=False))
    channel = estimate(belief, weak, used, tolerance=1e-10)
    w = weak.astype(np.float64)
    joint = clipped(belief)[:, :, None] * channel.confusion * w[:, None, :]  # class and true label
    joint /= joint.sum((1, 2), keepdims=True)
    assert channel.posterior == pytest.approx(joint.sum(2), abs=1e-12)
    counts = joint[used].sum(0) + 1.0
    assert channel.confusion == pytest.approx(counts / counts.sum(1, keepdims=True), abs=1e-8)
    # Rows that do not count get a posterior and teach nothing.
    other = weak.copy()
    other[~used] = other[~used][:, ::-1]
    same = estimate(belief, other, used, tolerance=1e-10)
    assert np.array_equal(same.confusion, channel.confusion)
    assert not np.array_equal(same.posterior[~used], channel.posterior[~used])


def test_softened_labels_carry_what_hard_ones_do() -> None:
    """Labels of 0.9 for sure ones are sharpened by the matrix; 1/3 each says nothing."""
    _, belief, label = _two_sources(1500, seed=2)
    used = np.ones(1500, dtype=bool)
    hard, soft = (estimate(belief, _soft(label, 3, top), used) for top in (1.0, 0.9))
    assert np.abs(hard.posterior - soft.posterior).mean() < 0.02
    weak = _soft(label, 3)
    weak[:10] = 1 / 3
    channel = estimate(belief, weak, used)
    assert channel.posterior[:10] == pytest.approx(clipped(belief)[:10])


def test_em_learns_a_shifted_balance() -> None:
    """Beliefs say 1/3 each; in truth two thirds of the rows are of class 0."""
    gold, belief, _ = _two_sources(6000, seed=3)
    rng = np.random.default_rng(4)
    rows = np.concatenate([(gold == 0).nonzero()[0], (gold != 0).nonzero()[0][:1000]])
    gold, belief = gold[rows], belief[rows]
    label = np.array([rng.choice(3, p=CONFUSION[y]) for y in gold])
    share = np.bincount(gold, minlength=3) / len(gold)
    used = np.ones(len(gold), dtype=bool)
    plain = estimate(belief, _soft(label, 3), used)
    moved = estimate(belief, _soft(label, 3), used, shift=True)
    assert np.abs(moved.posterior.mean(0) - share).max() < 0.05
    assert np.abs(plain.posterior.mean(0) - share).max() > 0.08
    assert np.abs(moved.confusion - CONFUSION).max() < 0.05


def test_posterior_of_a_biased_student() -> None:
    gold, belief, label = _two_sources(1500, seed=5)
    weak = Targets(_soft(label, 3, 0.8))
    biased = belief * np.array([6.0, 1.0, 1.0])
    prior = Targets((biased / biased.sum(1, keepdims=True)).astype(np.float32))
    own, fixed, em = (
        Posterior(balance=b).combine(weak, prior, seed=0) for b in ("own", "weak", "em")
    )
    assert fixed.probs.dtype == np.float32 and np.allclose(fixed.probs.sum(1), 1, atol=1e-6)
    assert _accuracy(fixed, gold) > _accuracy(weak, gold) + 0.05
    assert min(_accuracy(fixed, gold), _accuracy(em, gold)) > _accuracy(own, gold) + 0.01


def test_inverted_classes_of_the_student_are_told() -> None:
    """EM takes the beliefs' word for which class is which."""
    _, belief, label = _two_sources(1500, seed=5)
    weak = Targets(_soft(label, 3, 0.8))
    prior = Targets(np.roll(belief, 1, axis=1).astype(np.float32))
    with pytest.warns(DataWarning, match=r"below the 0\.33 of chance.*right order"):
        Posterior().combine(weak, prior, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Posterior().combine(weak, Targets(belief.astype(np.float32)), seed=0)


# Truth directions


def _contrast(n: int = 240, dim: int = 12, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Gold and features after either word: truth on axis 1, the word on axis 5, noise on all."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 2, n)
    sides = []
    for c in (0, 1):
        x = 0.6 * rng.normal(size=(n, dim))
        x[:, 1] += np.where(gold == c, 1.5, -1.5)
        x[:, 5] += 4.0 * c
        sides.append(x.astype(np.float32))
    return gold, *sides


def test_normalising_takes_out_the_word() -> None:
    _, first, second = _contrast()
    rows = torch.arange(0, 240, 2)
    for x in (first, second):
        out = normalised(torch.from_numpy(x), rows)
        assert out[rows].mean(0).abs().max() < 1e-5
        assert (out[rows].std(0, correction=0) - 1).abs().max() < 1e-4
    constant = normalised(torch.full((5, 2), 7.0), torch.arange(5))
    assert torch.equal(constant, torch.zeros(5, 2))


def test_ccs_loss_by_hand() -> None:
    """At logits (ln 3, ln 3): p = (3/4, 3/4), consistency 1/4, confidence 9/16."""
    z = torch.tensor([[3.0]], dtype=torch.float64).log()
    u, b = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert float(ccs_loss(z, z, u, b)) == pytest.approx(1 / 4 + 9 / 16)
    assert float(ccs_loss(-z, z, u, b)) == pytest.approx(1 / 16)
    assert truth(-z, z, u[:, 0], b[0]).tolist() == pytest.approx([0.75])


def test_the_search_ends_in_a_minimum_on_the_sphere() -> None:
    _, first, second = _contrast()
    x0, x1 = (normalised(torch.from_numpy(x).double(), torch.arange(240)) for x in (first, second))
    u, b = consistent(x0, x1, restarts=4, seed=0)
    assert float(u.norm()) == pytest.approx(1, abs=1e-12) and abs(float(u[1])) > 0.9
    least = float(ccs_loss(x0, x1, u[:, None], b[None]))
    g = torch.Generator().manual_seed(1)
    for _ in range(50):
        near = u + 0.05 * torch.randn(12, generator=g, dtype=torch.float64)
        moved = b + 0.02 * torch.randn((), generator=g, dtype=torch.float64)
        assert float(ccs_loss(x0, x1, (near / near.norm())[:, None], moved[None])) > least


def test_the_best_of_several_starts_is_taken() -> None:
    """Noise has many minima: the best of eight starts is below most that a single one finds."""
    g = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 40, 10, generator=g, dtype=torch.float64)

    def least(restarts: int, seed: int) -> float:
        u, b = consistent(x0, x1, restarts, seed)
        return float(ccs_loss(x0, x1, u[:, None], b[None]))

    single = sorted(least(1, seed) for seed in range(8))
    assert single[0] < single[-1] - 1e-4
    assert least(8, 0) <= single[2] + 1e-6


def test_crc_is_the_first_principal_component() -> None:
    difference = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)
    u = principal(difference, seed=0)
    v = torch.linalg.svd(difference.double())[2][0]
    assert abs(float(u.double() @ v)) == pytest.approx(1, abs=1e-6)
    assert float(principal(torch.tensor([[3.0], [1.0]]), 0).abs()) == pytest.approx(1)


@pytest.mark.parametrize("direction", ["ccs", "crc"])
def test_direction_finds_the_truth_and_weak_labels_only_its_sign(direction: str) -> None:
    gold, first, second = _contrast()
    hard = np.where(np.random.default_rng(1).random(240) < 0.4, 1 - gold, gold)
    method = CCS(direction=direction, restarts=3)
    out = method.read(Targets(_soft(hard, 2, 0.8)), first, second, seed=0)
    assert _accuracy(out, gold) > 0.98
    turned = method.read(Targets(_soft(1 - hard, 2, 0.8)), first, second, seed=0)
    assert turned.probs == pytest.approx(out.probs[:, ::-1], abs=1e-6)
    other = np.where(np.arange(240) < 60, hard, gold)
    same = method.read(Targets(_soft(other, 2)), first, second, seed=0)
    assert np.array_equal(same.probs, out.probs)


def test_ccs_refuses_three_classes() -> None:
    x = np.zeros((3, 2), dtype=np.float32)
    with pytest.raises(W2SError, match="'ccs' contrasts two classes, the task has 3"):
        CCS().read(Targets(_soft(np.arange(3), 3)), x, x, seed=0)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("elicit:calibrate=gold", "expected one of none, weak"),
        ("ccs:layer=middle", "expected half, last, or a number"),
        ("ccs:direction=pca", "expected one of ccs, crc"),
        ("posterior:smoothing=0", "smoothing is 0.0"),
        ("consistent:start=gold", "expected one of weak, answers"),
        ("consistent:slack=2", r"expected a number in \[0, 1\]"),
    ],
)
def test_bad_settings(spec: str, says: str) -> None:
    with pytest.raises(W2SError, match=says):
        make_method(spec)
