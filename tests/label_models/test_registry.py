"""Label models by name, and the majority vote as one of them."""

from __future__ import annotations

import pytest
import torch
from helpers.planted_votes import planted

from w2s_fast.errors import W2SError
from w2s_fast.label_models import (
    LABEL_MODELS,
    DawidSkene,
    MajorityVote,
    WeightedVote,
    majority_vote,
    make_label_model,
)


@pytest.mark.parametrize("name", LABEL_MODELS)
@pytest.mark.parametrize("balance", [None, "uniform", "majority", [0.3, 0.7]])
def test_every_name_fits_and_labels(name: str, balance: object) -> None:
    truth = planted(2000, 6, [0.3, 0.7])
    model = make_label_model(name, 2, balance)
    probs = model.fit(truth.votes).posterior(truth.votes)
    assert probs.shape == (2000, 2) and torch.allclose(probs.sum(1), torch.ones(2000).double())
    assert (probs.argmax(1) == truth.classes).double().mean() > 0.8  # the constant class has .7


def test_settings_are_those_of_the_class() -> None:
    named = make_label_model("dawid_skene:anchor=100,one_coin=true", 3, "majority")
    assert repr(named) == repr(DawidSkene(3, "majority", one_coin=True, anchor=100.0))
    assert repr(make_label_model("weighted:smoothing=5", 2)) == repr(WeightedVote(2, smoothing=5.0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dawid_skenes", "unknown label model 'dawid_skenes'.*did you mean 'dawid_skene'"),
        ("metal:n_classes=2", "n_classes is that of the task"),
        ("metal:anchor=2", "has no field 'anchor'"),
        ("dawid_skene:class_balance=uniform", "class_balance cannot be set in a spec"),
    ],
)
def test_bad_specs_are_named(spec: str, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        make_label_model(spec, 2)


@pytest.mark.parametrize("kind", [MajorityVote, WeightedVote])
def test_rows_without_votes_get_the_class_balance(kind: type) -> None:
    votes = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, -1], [-1, -1, -1]])
    expected = {None: [0.5, 0.5], "uniform": [0.5, 0.5], "majority": [0.75, 0.25]}
    for balance, share in expected.items():
        model = kind(2, balance).fit(votes)
        assert model.posterior(votes)[4].tolist() == pytest.approx(share), balance
    assert kind(2, [0.9, 0.1]).fit(votes).posterior(votes)[4].tolist() == [0.9, 0.1]
    with pytest.raises(W2SError, match="class_balance is 'equal'"):
        kind(2, "equal").fit(votes)


def test_the_majority_vote_takes_a_single_source() -> None:
    votes = torch.tensor([[0], [1], [-1]])
    model = MajorityVote(2).fit(votes)
    assert torch.equal(model.posterior(votes), majority_vote(votes, 2))
    with pytest.raises(W2SError, match="call fit"):
        MajorityVote(2).posterior(votes)
    with pytest.raises(W2SError, match="every source abstains for every row"):
        MajorityVote(2).fit(torch.full((3, 2), -1))
