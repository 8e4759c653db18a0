"""Chains of rounds with methods between them, and the rule that stops them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.method_plans import evaluate, two

from w2s_fast.errors import W2SError
from w2s_fast.methods import Node, Plan, all_nodes, make_steps, student_nodes
from w2s_fast.methods._rounds import round_agreement, settled_round
from w2s_fast.methods.bootstrap import StrongToStrong

PLAN = Plan(intermediate_models=2)
WEAK = PLAN.weak_labels()
CHAIN = ("small_loss", "strong_to_strong", "confident", "strong_to_strong", "agree")


def nodes(spec: str) -> set[Node]:
    student, _ = student_nodes(make_steps(spec), PLAN)
    return set(all_nodes([student]))


def trained(spec: str) -> set[Node]:
    return {n for n in nodes(spec) if n.stage in ("student", "weak", "intermediate")}


def test_a_round_more_computes_what_is_new_alone() -> None:
    """Three rounds, another method in each: every prefix is part of the next chain."""
    for end in range(1, len(CHAIN)):
        shorter, longer = "|".join(CHAIN[:end]), "|".join(CHAIN[: end + 1])
        student, _ = student_nodes(make_steps(shorter), PLAN)
        assert trained(shorter) - trained(longer) <= {student}
        if CHAIN[end] == "strong_to_strong":  # its student is the last of the shorter chain
            assert trained(shorter) < trained(longer)
    students = [n for n in nodes("|".join(CHAIN)) if n.stage == "student"]
    assert len(students) == 1 + 1 + 1 + 1  # the peer of small_loss, two rounds, the last
    assert {n for n in students if dict(n.settings).get("member")} <= nodes("small_loss")


def test_each_round_learns_from_the_method_before_it() -> None:
    student, _ = student_nodes(make_steps("confident|strong_to_strong|resample"), PLAN)
    resampled = dict(student.needs)["labels"]
    relabelled = dict(resampled.needs)["weak"]
    first = dict(relabelled.needs)["model"]
    confident = dict(first.needs)["labels"]
    names = [dict(n.settings)["function"] for n in (resampled, confident)]
    assert names == ["drawn", "confident_rows"] and dict(confident.needs)["weak"] == WEAK


@pytest.mark.parametrize(
    "spec",
    ["bootstrap|confident|strong_to_strong", "strong_to_strong|bootstrap", "ensemble|bootstrap"],
)
def test_chains_of_sizes_go_with_rounds(spec: str) -> None:
    made = [n for n in nodes(spec) if n.stage == "intermediate"]
    assert sorted(dict(n.settings)["role"] for n in made) == ["intermediate/0", "intermediate/1"]


def test_agreement_of_rounds_by_hand() -> None:
    rounds = [two(*p).probs for p in ([0.9, 0.9, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1],
                                      [0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.9, 0.9])]  # fmt: skip
    assert round_agreement(rounds, np.ones(4, bool)).tolist() == [0.75, 0.75, 0.75]
    used = np.array([True, True, False, True])
    assert round_agreement(rounds, used) == pytest.approx([2 / 3, 1, 2 / 3])


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        ([0.8], 1),
        ([0.8, 0.8], 1),
        ([0.8, 0.7, 0.9], 1),
        ([0.8, 0.9, 0.9], 2),
        ([0.8, 0.9, 0.95], 3),
        ([0.8, 0.9, 0.95, 0.94], 3),
    ],
)
def test_the_round_that_settled(agreement: list[float], expected: int) -> None:
    assert settled_round(np.array(agreement)) == expected


def test_the_student_learns_the_round_that_settled() -> None:
    node = StrongToStrong(rounds=3, stop="agreement").labels(PLAN, WEAK)
    needs = dict(node.needs)
    plain = StrongToStrong(rounds=3).labels(PLAN, WEAK)
    assert needs["round3"] == plain and needs["weak"] == WEAK, "the rounds are shared"
    for before, after in (("round1", "round2"), ("round2", "round3")):
        assert dict(dict(needs[after].needs)["model"].needs)["labels"] == needs[before]
    given = {
        WEAK: two(0.9, 0.9, 0.1, 0.1, weight=[1, 1, 1, 0]),
        needs["round1"]: two(0.8, 0.2, 0.1, 0.9),
        needs["round2"]: two(0.7, 0.2, 0.1, 0.1),
        needs["round3"]: two(0.1, 0.2, 0.1, 0.1),
    }
    out = evaluate(node, given)  # of the rows that count: 2/3, 1, 2/3
    assert np.array_equal(out.probs, given[needs["round2"]].probs) and out.weight is None


def test_a_rule_without_a_choice_and_texts() -> None:
    with pytest.raises(W2SError, match="stop is 'agreement' with rounds=1, which leaves nothing"):
        StrongToStrong(stop="agreement")
    with pytest.raises(W2SError, match="expected one of never, agreement"):
        StrongToStrong(stop="gold")
    stopping = StrongToStrong(rounds=2, stop="agreement")
    with pytest.raises(W2SError, match="generation task are texts; set stop=never"):
        stopping.check_task(0, 10)
    stopping.check_task(2, 10)
    StrongToStrong(rounds=2).check_task(0, 10)
