"""Methods that pool labels, and those that change the training: by hand, and as plans."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.method_plans import evaluate, two, used_rows

from w2s_fast.errors import W2SError
from w2s_fast.methods import Plan, Targets, student_nodes
from w2s_fast.methods._pool import pool
from w2s_fast.methods.bootstrap import StrongToStrong
from w2s_fast.methods.born_again import BornAgain
from w2s_fast.methods.combine import Combine
from w2s_fast.methods.confident import Confident
from w2s_fast.methods.early_stop import EarlyStop, GroundTruthEarlyStop
from w2s_fast.methods.ensemble import Ensemble
from w2s_fast.methods.generative_finetuning import GenerativeFinetuning
from w2s_fast.methods.linear_probe import LinearProbe

PLAN = Plan()
WEAK = PLAN.weak_labels()


def test_mean_and_logarithmic_pool() -> None:
    a, b = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
    assert pool([a, b], "mean") == pytest.approx(np.array([[0.55, 0.45]]))
    g = np.sqrt([0.9 * 0.2, 0.1 * 0.8])
    assert pool([a, b], "log") == pytest.approx((g / g.sum())[None])
    assert pool([a, b], "mean", [3, 1]) == pytest.approx(np.array([[0.725, 0.275]]))
    g = np.array([0.9**3 * 0.2, 0.1**3 * 0.8]) ** 0.25
    assert pool([a, b], "log", [0.75, 0.25]) == pytest.approx((g / g.sum())[None])
    for how in ("mean", "log"):
        assert pool([a, a, a], how) == pytest.approx(a) and pool([a], how).dtype == np.float32


def test_contradicting_certainties_cancel() -> None:
    """0 / 0 in a product of probabilities; in one of logarithms neither side wins."""
    a, b = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    assert pool([a, b], "log") == pytest.approx(np.array([[0.5, 0.5, 0.0]]), abs=1e-3)


@pytest.mark.parametrize("how", ["mean", "log"])
def test_ensemble_pools_supervisors_of_several_seeds(how: str) -> None:
    node = Ensemble(members=3, pool=how).labels(PLAN, WEAK)
    members = [PLAN.weak_labels(member=i) for i in range(3)]
    assert [n for _, n in node.needs] == members and members[0] == WEAK
    log_pool = 1 / (1 + np.exp(-(np.log(9) + np.log(0.25) + np.log(4)) / 3))
    given = dict(zip(members, (two(0.9, 0.6, weight=[2, 0]), two(0.2, 0.6), two(0.8, 0.6)),
                     strict=True))  # fmt: skip
    out = evaluate(node, given)
    assert out.probs[0, 1] == pytest.approx(1.9 / 3 if how == "mean" else log_pool)
    assert out.probs[1, 1] == pytest.approx(0.6) and out.weight.tolist() == [2, 0]


def test_an_ensemble_of_independent_supervisors_is_better_than_each() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(2, size=4000)
    members = [PLAN.weak_labels(member=i) for i in range(4)]
    given = {m: two(*1 / (1 + np.exp(-rng.normal(gold - 0.5, 1)))) for m in members}
    each = [(t.probs.argmax(1) == gold).mean() for t in given.values()]
    for how in ("mean", "log"):
        out = evaluate(Ensemble(pool=how).labels(PLAN, WEAK), given)
        assert (out.probs.argmax(1) == gold).mean() > max(each) + 0.1


def test_combine_shifts_the_prior_and_weighs_sources() -> None:
    """The student prefers class 1 throughout; shifted to the balance of the labels, it is even."""
    given = {WEAK: two(0.3, 0.7), PLAN.prior(): two(0.8, 0.9)}
    node = Combine(weights="1+3").labels(PLAN, WEAK)
    out = evaluate(node, given).probs[:, 1]
    odds = np.sqrt((0.9 / 0.1) / (0.8 / 0.2))  # the bias that makes the mean 1/2 is symmetric
    shifted = np.array([1 / (1 + odds), odds / (1 + odds)])
    assert out == pytest.approx(0.25 * np.array([0.3, 0.7]) + 0.75 * shifted, abs=1e-5)
    alone = evaluate(Combine(weights="1+0", pool="log").labels(PLAN, WEAK), given)
    assert alone.probs == pytest.approx(given[WEAK].probs)


def test_combine_takes_methods_and_keeps_what_all_keep() -> None:
    node = Combine(of="ensemble+confident+weak", pool="mean").labels(PLAN, WEAK)
    assert node.needs[1][1] == Ensemble().labels(PLAN, WEAK)
    others = {PLAN.weak_labels(member=i): two(0.1, 0.4, 0.9) for i in range(1, 4)}
    out = evaluate(node, {WEAK: two(0.9, 0.6, 0.1, weight=[1, 1, 0]), **others})
    assert out.probs[:, 1] == pytest.approx([(0.3 + 1.8) / 3, (0.45 + 1.2) / 3, (0.7 + 0.2) / 3])
    assert used_rows(out) == [0]  # row 1 is not confident, row 2 was out before


def test_born_again_mixes_own_labels_with_the_weak_ones() -> None:
    node = BornAgain(share=0.25, rounds=2).labels(PLAN, WEAK)
    first = PLAN.labels(PLAN.student(WEAK))
    mixed = dict(dict(dict(node.needs)["own"].needs)["model"].needs)["labels"]
    weak = two(0.8, 0.4, weight=[1, 0])
    once = evaluate(mixed, {WEAK: weak, first: two(0.4, 0.8)})
    assert once.probs[:, 1] == pytest.approx([0.7, 0.5]) and once.weight.tolist() == [1, 0]
    second = PLAN.labels(PLAN.student(mixed))
    twice = evaluate(node, {WEAK: weak, second: two(0.0, 1.0)})
    assert twice.probs[:, 1] == pytest.approx([0.6, 0.55])  # of the weak ones, not of ``once``


def test_born_again_with_share_one_is_strong_to_strong() -> None:
    node = BornAgain(share=1.0).labels(PLAN, WEAK)
    own = StrongToStrong().labels(PLAN, WEAK)
    labels = two(0.3)
    assert np.array_equal(evaluate(node, {WEAK: two(0.9), own: labels}).probs, labels.probs)


def test_stopping_is_by_weak_labels_and_the_oracle_says_what_it_uses() -> None:
    weak, ceiling = student_nodes((EarlyStop(holdout=0.2),), PLAN)
    settings = dict(weak.settings)
    assert (settings["keep"], settings["holdout"], weak.gold) == ("weak", 0.2, ())
    assert ceiling == PLAN.ceiling()
    oracle, _ = student_nodes((GroundTruthEarlyStop(),), PLAN)
    assert dict(oracle.settings)["keep"] == "gold" and oracle.gold
    with pytest.raises(W2SError, match="keep=gold"):
        student_nodes((EarlyStop(), GroundTruthEarlyStop()), PLAN)


def test_what_changes_the_model_changes_the_ceiling_too() -> None:
    probe, ceiling = student_nodes((LinearProbe(), EarlyStop()), PLAN)
    assert dict(probe.settings)["freeze"] and ceiling == PLAN.ceiling(freeze=True)
    tuned, ceiling = student_nodes((GenerativeFinetuning(), Confident()), PLAN)
    assert dict(tuned.needs)["start"] == PLAN.tuned() == dict(ceiling.needs)["start"]
    assert dict(tuned.needs)["labels"] == Confident().labels(PLAN, WEAK)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Ensemble(members=1), "members is 1"),
        (lambda: Ensemble(pool="max"), "expected one of mean, log"),
        (lambda: Combine(pool="max"), "expected one of mean, log"),
        (lambda: Combine(weights="1"), r"expected 2 numbers joined by '\+'"),
        (lambda: Combine(weights="0+0"), "not all 0"),
        (lambda: Combine(weights="-1+2"), "none negative"),
        (lambda: Combine(weights="nan+1"), "weights are 'nan"),
        (lambda: Combine(weights="one+1"), "expected numbers joined"),
        (lambda: Combine(of="weak+prir"), "unknown method 'prir'"),
        (lambda: BornAgain(share=1.5), "share is 1.5"),
        (lambda: BornAgain(rounds=0), "rounds is 0"),
        (lambda: EarlyStop(holdout=0), "holdout is 0"),
    ],
)
def test_bad_fields(make: object, says: str) -> None:
    with pytest.raises(W2SError, match=says):
        make()  # type: ignore[operator]


def test_pools_take_any_number_of_classes() -> None:
    given = {WEAK: Targets(np.eye(3, dtype=np.float32))}
    others = {PLAN.weak_labels(member=i): given[WEAK] for i in range(1, 4)}
    for how in ("mean", "log"):
        out = evaluate(Ensemble(pool=how).labels(PLAN, WEAK), {**given, **others})
        assert out.probs == pytest.approx(np.eye(3), abs=1e-5)
