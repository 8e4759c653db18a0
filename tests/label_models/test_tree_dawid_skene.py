"""Dependent sources: copies count once, pairs are found, and the joint is a distribution."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from helpers.planted_votes import planted

from w2s_fast import W2SError
from w2s_fast.errors import DataWarning
from w2s_fast.label_models import DawidSkene, TreeDawidSkene
from w2s_fast.label_models import dependencies as module
from w2s_fast.label_models.dependencies import (
    conditional_information,
    decorrelated_vote,
    learn_forest,
    pair_counts,
)
from w2s_fast.label_models.forest import parents_of

PRIORS = [[0.55, 0.45], [0.2, 0.8], [0.4, 0.3, 0.2, 0.1]]


@pytest.mark.parametrize("prior", PRIORS)
def test_independent_sources_have_no_pairs_and_the_usual_posterior(prior: list[float]) -> None:
    p = planted(5000, 15, prior)
    m = TreeDawidSkene(len(prior)).fit(p.votes)
    plain = DawidSkene(len(prior)).fit(p.votes)
    assert m.pairs == ()
    assert float((m.posterior(p.votes) - plain.posterior(p.votes)).abs().max()) < 1e-3


@pytest.mark.parametrize("prior", PRIORS)
def test_posteriors_do_not_move_when_every_source_is_duplicated(prior: list[float]) -> None:
    p = planted(5000, 15, prior)
    once = DawidSkene(len(prior)).fit(p.votes).posterior(p.votes)
    doubled = torch.cat([p.votes, p.votes], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # equal sources are no reason for a warning here
        m = TreeDawidSkene(len(prior)).fit(doubled)
    assert m.pairs == tuple((j, j + 15) for j in range(15))
    assert float((m.posterior(doubled) - once).abs().max()) <= 0.02


@pytest.mark.filterwarnings("ignore:.*equal votes in every row")
@pytest.mark.parametrize("prior", PRIORS)
def test_posteriors_do_not_move_when_half_of_the_sources_copy_one(prior: list[float]) -> None:
    p = planted(5000, 15, prior)
    votes = p.votes.clone()
    votes[:, 8:] = votes[:, :1]
    eight = DawidSkene(len(prior)).fit(votes[:, :8]).posterior(votes[:, :8])
    m = TreeDawidSkene(len(prior)).fit(votes)
    assert float((m.posterior(votes) - eight).abs().max()) <= 0.02
    blind = DawidSkene(len(prior)).fit(votes).posterior(votes)
    assert float((blind - eight).abs().mean()) > 0.1


def test_noisy_copies_are_found_and_do_not_become_the_class() -> None:
    p = planted(5000, 15, [0.55, 0.45], seed=1)
    copied = torch.rand(5000, 7, generator=torch.Generator().manual_seed(0)) < 0.8
    votes = p.votes.clone()
    votes[:, 8:] = torch.where(copied, votes[:, :1], votes[:, 8:])
    m = TreeDawidSkene(2).fit(votes)
    assert m.pairs == tuple((0, j) for j in range(8, 15))

    def right(model: DawidSkene | TreeDawidSkene) -> float:
        return float((model.posterior(votes).argmax(1) == p.classes).double().mean())

    assert right(m) > 0.9 > 0.7 > right(DawidSkene(2).fit(votes))
    assert float((m.rates[:8] - p.rates[:8]).abs().mean()) < 0.015


def test_the_joint_sums_to_one_over_all_votes() -> None:
    """A separator with the wrong sign, or counted once too often, breaks this."""
    p = planted(400, 5, [0.6, 0.4])
    pairs = [(0, 1), (0, 4), (2, 4)]  # the parent of 2 is 4
    m = TreeDawidSkene(2, dependencies=pairs).fit(p.votes)
    every = torch.tensor(list(itertools.product(range(3), repeat=5)))
    joint = m._log_joint(every).exp()
    assert float(joint.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(joint.sum(0), m.prior)
    clique = joint.view(3, 3, 3, 3, 3, 2).sum((2, 3, 4))  # P(L_0, L_1, Y)
    separators = joint.view(3, 3, 3, 3, 3, 2).sum((1, 2, 3, 4))
    conditional = clique / separators[:, None]
    torch.testing.assert_close(conditional.permute(2, 0, 1), m.conditionals[1])
    implied, cells = m.pair_joint(), joint.view(3, 3, 3, 3, 3, 2)
    for i, j in itertools.combinations(range(5), 2):  # neighbours, paths of two and three, no path
        rest = [x for x in range(5) if x not in (i, j)]
        expected = cells.sum(rest).permute(2, 0, 1)
        torch.testing.assert_close(implied[:, i, :, j, :], expected)
        torch.testing.assert_close(implied[:, j, :, i, :], expected.transpose(1, 2))


def mixed_copies(two_parents: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(votes, classes): five sources copy source 5, and otherwise vote alone or copy 0 to 4."""
    p = planted(3000, 11, [0.6, 0.4], seed=2, accuracy=(0.7, 0.8))
    copied = torch.rand(3000, 5, generator=torch.Generator().manual_seed(0)) < 0.8
    own = p.votes[:, :5] if two_parents else p.votes[:, 6:]
    votes = torch.cat([p.votes[:, :6], torch.where(copied, p.votes[:, 5:6], own)], 1)
    return votes, p.classes


def test_dependencies_beyond_a_forest_are_warned_about() -> None:
    votes, _ = mixed_copies(two_parents=True)
    with pytest.warns(DataWarning, match="pairs of sources depend on each other beyond a forest"):
        TreeDawidSkene(2, dependencies=[(5, j) for j in range(6, 11)]).fit(votes)


def test_a_forest_that_fits_is_not_warned_about() -> None:
    votes, _ = mixed_copies(two_parents=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = TreeDawidSkene(2).fit(votes)
    assert set(m.pairs) >= {(5, j) for j in range(6, 11)}


def test_a_symbol_that_the_parent_never_gives_says_nothing() -> None:
    p = planted(400, 4, [0.6, 0.4])
    votes = p.votes.clone()
    votes[:, 0] = votes[:, 0].clamp(min=0)  # source 0 never abstains
    m = TreeDawidSkene(2, dependencies=[(0, 1)]).fit(votes)
    torch.testing.assert_close(m.conditionals[1][:, 2], m.rates[1])
    assert float((m.conditionals[1][:, 0] - m.rates[1]).abs().max()) > 0.01


def test_given_dependencies_are_kept() -> None:
    p = planted(500, 6, [0.5, 0.5])
    m = TreeDawidSkene(2, dependencies=[(4, 1), (1, 2)]).fit(p.votes)
    assert m.pairs == ((1, 2), (1, 4)) and set(m.conditionals) == {2, 4}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(0, 1), (1, 2), (2, 0)], "cycle"),
        ([(1, 1)], "two different sources"),
        ([(0, 7)], "of 0 to 3"),
    ],
)
def test_wrong_dependencies(pairs: list[tuple[int, int]], message: str) -> None:
    votes = planted(50, 4, [0.5, 0.5]).votes
    with pytest.raises(W2SError, match=message):
        TreeDawidSkene(2, dependencies=pairs).fit(votes)


def test_parents() -> None:
    assert parents_of(((0, 1), (1, 3), (2, 4)), 6) == [-1, 0, -1, 1, 2, -1]


def test_pair_counts_and_information(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_CELLS", 50)
    p = planted(60, 3, [0.5, 0.5])
    q = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)).double()
    q = q / q.sum(1, keepdim=True)
    counts = pair_counts(p.votes, q)
    rows = (p.votes[:, 0] == 1) & (p.votes[:, 2] == -1)
    assert float(counts[1, 0, 1, 2, 2]) == pytest.approx(float(q[rows, 1].sum()))
    expected = 0.0
    for c, a, b in itertools.product(range(2), range(3), range(3)):
        table = counts[c, 0, :, 2, :]
        if table[a, b] > 0:
            ratio = table[a, b] * table.sum() / (table[a].sum() * table[:, b].sum())
            expected += float(table[a, b] / 60 * ratio.log())
    assert float(conditional_information(counts)[0, 2]) == pytest.approx(expected)


def test_pairs_that_do_not_fit() -> None:
    with pytest.raises(W2SError, match="counts of pairs of 800 sources and 10 classes"):
        learn_forest(torch.zeros(5, 800, dtype=torch.int8), torch.full((5, 10), 0.1).double())


def test_the_first_vote_shares_the_weight_of_copies() -> None:
    p = planted(3000, 4, [0.5, 0.5], accuracy=(0.75, 0.75))
    copied = torch.cat([p.votes] + [p.votes[:, :1]] * 8, 1)
    once, again = decorrelated_vote(p.votes, 2), decorrelated_vote(copied, 2)
    assert float((once - again).abs().max()) < 0.02


def test_partial_fit_and_standard_errors() -> None:
    p = planted(12_000, 6, [0.6, 0.4])
    votes = torch.cat([p.votes, p.votes[:, [2]]], 1)
    m = TreeDawidSkene(2)
    for batch in votes.split(1000):
        m.partial_fit(batch)
    assert m.pairs == ((2, 6),)
    assert float(m._counts.classes.sum()) == pytest.approx(12_000)
    assert float((m.rates[:6] - p.rates).abs().mean()) < 0.01
    one = TreeDawidSkene(2).fit(votes[:2000])
    before = one.rates.clone()
    se = one.standard_errors(votes[:2000])
    torch.testing.assert_close(one.rates, before, rtol=0, atol=0)
    plain = DawidSkene(2).fit(votes[:2000, :6]).standard_errors(votes[:2000, :6])
    assert 0.7 < float((se.rates[:6] / plain.rates).mean()) < 1.3
    z = (one.rates[:6] - p.rates) / se.rates[:6]
    assert 0.7 < float(z.std()) < 1.4
