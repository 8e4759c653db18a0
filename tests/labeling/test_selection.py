"""Selection by an expert's answers: the model of usefulness, questions, and what is selected."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from w2s_fast import W2SError
from w2s_fast.labeling import accuracy_oracle, select_functions
from w2s_fast.labeling.selection import function_features, usefulness


def pool(
    n: int = 400, words: int = 80, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows with labels and features, and one-word functions of two classes.

    A quarter of the words are frequent in class 0, a quarter in class 1, half in neither: columns
    2 w and 2 w + 1 vote for class 0 and 1 where word w occurs.
    """
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    lean = torch.tensor([-1.0, 0.0, 1.0, 0.0]).repeat(words // 4)
    share = 0.12 + 0.1 * lean * (2 * y[:, None] - 1)
    occurs = torch.rand(n, words, generator=g) < share
    votes = torch.stack([torch.where(occurs, c, -1) for c in (0, 1)], 2).reshape(n, 2 * words)
    x = torch.randn(n, 6, generator=g) + 1.5 * (2 * y[:, None] - 1) * torch.eye(6)[0]
    return votes, y, x


def useful_share(votes: torch.Tensor, y: torch.Tensor, chosen: tuple[int, ...]) -> float:
    """Mean accuracy of the selected functions."""
    v = votes[:, list(chosen)]
    return float((v == y[:, None])[v >= 0].double().mean())


@pytest.mark.parametrize("features", [True, False])
def test_questions_lead_to_useful_functions(features: bool) -> None:
    votes, y, x = pool()
    ask = accuracy_oracle(votes, y, 2)
    everything = useful_share(votes, y, tuple(range(160)))
    assert everything == pytest.approx(0.5)  # each word votes for both classes
    s = select_functions(votes, 2, ask, features=x if features else None, n_questions=40)
    assert len(s.answers) == 40
    assert set(s.chosen) == {j for j, a in s.answers.items() if a}
    assert useful_share(votes, y, s.chosen) > 0.8
    # A quarter of all functions is useful; chance would accept ten of forty.
    assert len(s.chosen) >= 20
    classes = [j % 2 for j in s.chosen]
    assert abs(classes.count(0) - classes.count(1)) <= 4


def test_a_level_set_has_functions_nobody_was_asked_about() -> None:
    votes, y, x = pool()
    s = select_functions(
        votes, 2, accuracy_oracle(votes, y, 2), features=x, n_questions=30, acquisition="level_set"
    )
    predicted = [j for j in s.chosen if j not in s.answers]
    assert len(predicted) >= 5 and useful_share(votes, y, tuple(predicted)) > 0.65
    accepted = {j for j, a in s.answers.items() if a}
    assert accepted <= set(s.chosen)
    fewer = select_functions(
        votes, 2, accuracy_oracle(votes, y, 2), features=x, n_questions=30,
        acquisition="level_set", max_functions=len(accepted) + 2,
    )  # fmt: skip
    assert accepted < set(fewer.chosen) and len(fewer.chosen) == len(accepted) + 2


def test_the_expert_sees_functions() -> None:
    votes, y, _ = pool(words=4)
    names = [f"word {j // 2} -> {j % 2}" for j in range(8)]
    seen: list[str] = []

    def ask(name: str) -> bool:
        seen.append(name)
        return name in ("word 0 -> 0", "word 2 -> 1")

    s = select_functions(votes, 2, ask, functions=names, n_questions=100)
    assert sorted(seen) == names, "each is asked about once"
    assert [names[j] for j in s.chosen] == ["word 0 -> 0", "word 2 -> 1"]
    assert s.usefulness.tolist() == [float(n in ("word 0 -> 0", "word 2 -> 1")) for n in names]


def test_silent_functions_are_not_asked_about() -> None:
    votes, y, _ = pool(words=8)
    votes[:, 3] = -1
    s = select_functions(votes, 2, lambda j: True, n_questions=100)
    assert set(s.answers) == set(range(16)) - {3} == set(s.chosen)


def test_unknown_answers_teach_nothing() -> None:
    votes, _, x = pool(words=8)
    phi = function_features(votes, x, 2)
    mean, deviation = usefulness(phi, {0: None, 5: None}, 0.6)
    torch.testing.assert_close(mean, torch.full((16,), 0.6).double())
    torch.testing.assert_close(deviation, torch.full((16,), 0.5).double())
    with pytest.raises(W2SError, match="none of 16 functions asked about is useful"):
        select_functions(votes, 2, lambda j: None)


def test_usefulness_is_the_posterior_of_a_linear_model() -> None:
    """Against the posterior in weight space, which inverts another matrix."""
    g = torch.Generator().manual_seed(0)
    phi = torch.nn.functional.normalize(torch.randn(9, 4, generator=g).double(), dim=1)
    answers = {2: True, 5: False, 7: True}
    mean, deviation = usefulness(phi, answers, 0.6)
    design, given = phi[[2, 5, 7]], torch.tensor([0.4, -0.6, 0.4]).double()
    precision = design.T @ design / 0.3**2 + torch.eye(4).double() / 0.5**2
    weights = torch.linalg.solve(precision, design.T @ given / 0.3**2)
    rest = [0, 1, 3, 4, 6, 8]
    torch.testing.assert_close(mean[rest], (0.6 + phi @ weights).clamp(0, 1)[rest])
    variance = (phi @ torch.linalg.inv(precision) * phi).sum(1)
    torch.testing.assert_close(deviation, variance.sqrt())
    assert mean[[2, 5, 7]].tolist() == [1.0, 0.0, 1.0]


def test_opposite_votes_have_opposite_features() -> None:
    votes, _, x = pool(words=8)
    phi = function_features(votes, x, 2)
    torch.testing.assert_close(phi[0::2], -phi[1::2])
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(16).double())
    by_hand = (x - x.mean(0))[votes[:, 1] == 1].mean(0).double()
    torch.testing.assert_close(
        phi[1], torch.nn.functional.normalize(torch.cat([-by_hand, by_hand]) / 2, dim=0),
        atol=1e-6, rtol=1e-6,
    )  # fmt: skip


def test_oracle_weighs_classes_alike() -> None:
    votes = torch.full((10, 3), -1)
    y = torch.tensor([0] * 8 + [1] * 2)
    votes[:, 0] = 0  # right for eight of ten rows, and no better than chance
    votes[[0, 1, 8, 9], 1] = 1  # weight 2/8 wrong and 2/2 right
    votes[0, 2] = 0
    ask = accuracy_oracle(votes, y, 2, min_accuracy=0.7, min_votes=2)
    assert [ask(j) for j in range(3)] == [False, True, None]


VOTES, Y, X = pool(words=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"acquisition": "level"},
            "acquisition is 'level'; expected 'active_search' or 'level_set",
        ),
        ({"n_questions": 0}, "n_questions is 0"),
        ({"level": 2.0}, "level is 2.0; expected a number from 0 to 1"),
        ({"functions": ["a"]}, "there are 1 functions for 16 columns of votes"),
        ({"features": X[:5]}, "features have 5 rows and votes 400"),
        ({"features": X / 0}, "that are not finite"),
        ({"votes": VOTES.double()}, "votes have dtype torch.float64"),
        ({"n_classes": 1}, "n_classes is 1"),
        ({"ask": lambda j: "yes"}, "returned 'yes'; expected True, False or None"),
        ({"ask": lambda j: False}, "none of 16 functions asked about is useful"),
        ({"votes": VOTES * 0 - 1}, "none of 0 functions asked about is useful"),
    ],
)
def test_wrong_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        select_functions(**{"votes": VOTES, "n_classes": 2, "ask": lambda j: True, **change})


def test_answers_of_numpy_and_torch() -> None:
    for true in (np.bool_(True), torch.tensor(True), 1):
        assert select_functions(VOTES, 2, lambda j, t=true: t, n_questions=1).answers in (
            [{j: True} for j in range(16)]
        )
