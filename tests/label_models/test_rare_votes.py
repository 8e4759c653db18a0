"""Sources that vote rarely: fits that explain when sources abstain, and what is said about them."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.planted_votes import Planted, draw_votes, keyword_votes, planted

from w2s_fast.errors import DataWarning
from w2s_fast.label_models import DawidSkene, covered_rows, majority_vote, posterior
from w2s_fast.label_models.fit_warnings import cohen_kappa
from w2s_fast.label_models.majority import majority_balance


def accuracy(probs: torch.Tensor, classes: torch.Tensor) -> float:
    return float((probs.argmax(1) == classes).double().mean())


def messages(votes: torch.Tensor, **options: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DawidSkene(2, **options).fit(votes)
    return [str(w.message) for w in caught if w.category is DataWarning]


@pytest.mark.filterwarnings("ignore::w2s_fast.errors.DataWarning")
@pytest.mark.parametrize("seed", range(4))
def test_rows_without_votes_do_not_become_a_class(seed: int) -> None:
    """The larger class is 86 % of rows, and most rows have no vote: a start from equal classes
    makes "no vote" a class, with an accuracy of about .4."""
    votes, classes = keyword_votes(4500, seed)
    covered = covered_rows(votes)
    assert float(covered.double().mean()) < 0.45
    constant = float((classes == 0).double().mean())
    probs = DawidSkene(2).fit(votes).posterior(votes)
    assert accuracy(probs, classes) > constant + 0.01
    assert accuracy(probs[covered], classes[covered]) > 0.9


def one_sided(n: int, share: float, seed: int) -> Planted:
    """Seventy independent sources of one class each, of coverages from 1 to 12 %."""
    g = torch.Generator().manual_seed(seed)
    prior = torch.tensor([1 - share, share]).double()
    own = torch.arange(70) % 2
    ratio = 1.5 + 17 * torch.rand(70, generator=g).double()  # of the rates in both classes
    coverage = 0.01 + 0.11 * torch.rand(70, generator=g).double()
    wrong = coverage / (prior[own] * ratio + 1 - prior[own])
    rates = torch.zeros(70, 2, 3).double()
    rates[torch.arange(70), own, own] = (wrong * ratio).clamp(max=0.9)
    rates[torch.arange(70), 1 - own, own] = wrong
    rates[:, :, 2] = 1 - rates.sum(2)
    classes = torch.multinomial(prior, n, replacement=True, generator=g)
    return Planted(draw_votes(rates, classes, seed), classes, prior, rates)


@pytest.mark.parametrize("share", [0.14, 0.5, 0.8])
def test_independent_one_sided_sources(share: float) -> None:
    p = one_sided(5000, share, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = DawidSkene(2).fit(p.votes)
    assert float((m.rates - p.rates).abs().mean()) <= 0.01
    assert abs(float(m.prior[1]) - share) <= 0.02
    oracle = accuracy(posterior(p.votes, p.prior, p.rates), p.classes)
    constant = max(share, 1 - share)
    assert oracle - 0.01 <= accuracy(m.posterior(p.votes), p.classes)
    assert oracle > constant + 0.05


def test_rows_without_votes_are_counted_and_their_probabilities_said() -> None:
    votes, _ = keyword_votes(3000, 0)
    n = int((~covered_rows(votes)).sum())
    (said,) = [text for text in messages(votes) if "no vote" in text]
    empty = DawidSkene(2).fit(votes).posterior(torch.full((1, votes.shape[1]), -1))[0]
    shown = ", ".join(f"{p:.3f}" for p in empty.tolist())
    assert said.startswith(f"{n} of 3000 rows have no vote; all of them get")
    assert f"[{shown}], which rest on when sources abstain" in said
    assert "class_balance" in said and "anchor" in said


def test_rows_without_votes_under_missing_votes_get_the_class_balance() -> None:
    p = planted(500, 5, [0.7, 0.3])
    votes = torch.cat([p.votes, torch.full((400, 5), -1)])
    (said,) = messages(votes, abstain="missing")
    assert "400 of 900 rows have no vote" in said and "which are the class balance" in said
    assert messages(torch.cat([p.votes, torch.full((100, 5), -1)]), abstain="missing") == []


def test_classes_that_are_not_those_of_the_votes() -> None:
    """In long rows sources of both classes vote more: the latent class is the length."""
    g = torch.Generator().manual_seed(0)
    classes = torch.randint(2, (4000,), generator=g)
    own = torch.arange(60) % 2
    rate = torch.where(classes[:, None] == own, 0.03, 0.004)
    long = torch.where(torch.rand(4000, generator=g) < 0.3, 3.0, 0.1)
    votes = torch.where(torch.rand(4000, 60, generator=g) < rate * long[:, None], own, -1)
    covered = covered_rows(votes)
    with pytest.warns(DataWarning, match=r"by a kappa of -?0\.[01]\d \(0 is chance\)"):
        bad = DawidSkene(2).fit(votes)
    assert accuracy(bad.posterior(votes)[covered], classes[covered]) < 0.6
    options = {"class_balance": "majority", "anchor": 100.0}
    assert not any("kappa" in text for text in messages(votes, **options))
    good = DawidSkene(2, **options).fit(votes).posterior(votes)
    assert accuracy(good[covered], classes[covered]) > 0.85
    assert accuracy(majority_vote(votes, 2)[covered], classes[covered]) > 0.85


def test_kappa() -> None:
    a = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    b = torch.tensor([0, 1, 1, 1, 2, 0, 0, 1])
    # observed 6 / 8; by chance (3 * 3 + 3 * 4 + 2 * 1) / 64
    assert cohen_kappa(a, b, 3) == pytest.approx((6 / 8 - 23 / 64) / (1 - 23 / 64))
    assert cohen_kappa(a, a, 3) == pytest.approx(1)
    assert cohen_kappa(a, torch.zeros_like(a), 3) == pytest.approx(0)
    assert cohen_kappa(a[:2], a[:2], 3) == 1 and cohen_kappa(a[:0], a[:0], 3) == 1


def test_majority_balance_leaves_out_rows_without_votes() -> None:
    votes = torch.tensor([[0, 0, 1], [-1, -1, -1], [0, -1, -1], [1, 1, -1]], dtype=torch.int8)
    assert majority_balance(votes, 2).tolist() == pytest.approx([5 / 9, 4 / 9])
