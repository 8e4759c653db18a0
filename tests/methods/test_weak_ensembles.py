"""Boosted weak models, the Dirichlet of several, and confidence as a weight: by hand, as plans."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.method_plans import evaluate, two, used_rows

from w2s_fast.errors import W2SError
from w2s_fast.methods import Plan, Targets, make_method, student_nodes
from w2s_fast.methods._boosting import samme_round
from w2s_fast.methods.bayesian import Bayesian, evidence_share
from w2s_fast.methods.confidence_weighted import ConfidenceWeighted
from w2s_fast.methods.ensem_w2s import EnsemW2S

PLAN = Plan()
WEAK = PLAN.weak_labels()


# EnsemW2S.


def test_rounds_of_adaboost_by_hand() -> None:
    """Ten rows of which three are wrong; then the same model again."""
    wrong = np.arange(10) < 3
    vote, d = samme_round(wrong, np.ones(10), 2)
    assert vote == pytest.approx(np.log(7 / 3))
    assert d == pytest.approx(np.where(wrong, 7 / 3, 1.0) * 10 / 14)
    assert (d * wrong).sum() == pytest.approx((d * ~wrong).sum())  # AdaBoost: half of the mass
    assert samme_round(wrong, d, 2)[0] == pytest.approx(0, abs=1e-12)
    vote, d = samme_round(wrong, np.r_[2.0, np.ones(9)], 2)
    assert vote == pytest.approx(np.log(7 / 4))
    vote, d = samme_round(np.arange(10) < 6, np.ones(10), 3)  # better than guessing among three
    assert vote == pytest.approx(np.log(4 / 6) + np.log(2))
    assert d[0] / d[9] == pytest.approx(4 / 3)


def test_models_without_errors_and_guessing_ones() -> None:
    vote, d = samme_round(np.zeros(8, bool), np.ones(8), 2)
    assert vote == pytest.approx(np.log(15)) and d.tolist() == [1.0] * 8
    for wrong in (np.ones(8, bool), np.arange(8) > 2):
        vote, d = samme_round(wrong, np.arange(8.0), 2)
        assert vote == 0 and d == pytest.approx(np.arange(8) / 3.5)


def test_boosting_lowers_the_error_of_stumps() -> None:
    """The known property: a weighted vote of stumps beats each, where one stump cannot fit."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(800, 2))
    gold = (np.abs(x).sum(1) < 0.8).astype(int)
    d, scores, alone = np.ones(800), np.zeros(800), []
    for _ in range(30):
        stumps = [
            (x[:, j] > t).astype(int) ^ s for j in (0, 1) for t in np.linspace(-1, 1, 41)
            for s in (0, 1)
        ]  # fmt: skip
        best = min(stumps, key=lambda p: (d * (p != gold)).sum())
        vote, d = samme_round(best != gold, d, 2)
        scores += vote * (2 * best - 1)
        alone.append((best == gold).mean())
    assert ((scores > 0) == gold).mean() > max(alone) + 0.1


def test_every_model_learns_the_weights_of_the_round_before() -> None:
    node = EnsemW2S(members=3, folds=2).labels(PLAN, WEAK)
    needs = dict(node.needs)
    assert list(needs) == ["weak", "member0", "member1", "member2", "votes0", "votes1", "votes2"]
    assert needs["member0"] == WEAK  # the first is the plain weak model
    for m in range(3):
        model, round_ = dict(needs[f"member{m}"].needs)["model"], needs[f"votes{m}"]
        before = needs.get(f"votes{m - 1}")
        assert dict(model.settings)["member"] == m and dict(model.needs).get("boosting") == before
        judges = dict(round_.needs)
        assert judges.pop("boosting", None) == before
        assert list(judges) == ["fold0", "fold1"]
        for fold, labels in enumerate(judges.values()):
            judge = dict(labels.needs)["model"]
            assert dict(labels.settings)["split"] == "weak"
            assert dict(judge.settings) == {"role": "weak", "member": m, "fold": fold}
            assert dict(judge.needs).get("boosting") == before
    own = EnsemW2S(members=2, folds=0).labels(PLAN, WEAK)
    (judge,) = dict(dict(own.needs)["votes0"].needs).values()
    assert judge == PLAN.weak_labels(split="weak")


@pytest.mark.parametrize("how", ["mean", "log"])
def test_votes_weight_the_pool(how: str) -> None:
    node = EnsemW2S(members=2, folds=0, pool=how).labels(PLAN, WEAK)
    needs = dict(node.needs)
    given = {
        WEAK: two(0.9, 0.6, weight=[1, 0.5]), needs["member1"]: two(0.2, 0.2),
        needs["votes0"]: np.float32([3]), needs["votes1"]: np.float32([1]),
    }  # fmt: skip
    out = evaluate(node, given)
    log = 1 / (1 + np.exp(-(0.75 * np.log(9) + 0.25 * np.log(0.25))))
    assert out.probs[0, 1] == pytest.approx(0.725 if how == "mean" else log)
    assert out.weight.tolist() == [1, 0.5]
    none = {k: 0 * v if isinstance(v, np.ndarray) else v for k, v in given.items()}
    even = 1 / (1 + np.exp(-(np.log(9) + np.log(0.25)) / 2))
    assert evaluate(node, none).probs[0, 1] == pytest.approx(0.55 if how == "mean" else even)


def test_a_round_of_boosting_goes_to_weak_models_and_pools_alone() -> None:
    round_ = dict(EnsemW2S(folds=0).labels(PLAN, WEAK).needs)["votes0"]

    class Leak(EnsemW2S):
        def labels(self, plan, labels):
            return plan.labels(plan.student(labels, start=round_))

    with pytest.raises(W2SError, match="a round of boosting, .* to stage 'labels' as 'start'"):
        student_nodes((Leak(),), PLAN)
    student, _ = student_nodes((EnsemW2S(),), PLAN)
    assert round_.weak_gold == ("true labels of the weak split weight the votes of weak models",)


# Bayesian.


def test_posterior_by_hand() -> None:
    """Row 0: two members at 0.6 and 0.8; row 1: certain and equal; row 2: certain and opposed."""
    members = [PLAN.weak_labels(member=i) for i in range(2)]
    node = Bayesian(members=2).labels(PLAN, WEAK)
    assert [n for name, n in node.needs] == members
    given = {members[0]: two(0.6, 1.0, 1.0, weight=[2, 1, 1]), members[1]: two(0.8, 1.0, 0.0)}
    out = evaluate(node, given)
    g, v = 2 * 0.7 * 0.3, 2 * 0.02  # the variance of 0.6 and 0.8 is 0.02, in either class
    s = g / v - 1
    c = s / (s + 2)
    assert out.probs[:, 1] == pytest.approx([(1 + 0.7 * s) / (2 + s), 1.0, 0.5])
    mean = (c + 1) / 2  # over the rows that are left
    assert out.weight == pytest.approx([2 * c / mean, 1 / mean, 0]) and used_rows(out) == [0, 1]
    plain = evaluate(Bayesian(members=2, weigh=False).labels(PLAN, WEAK), given)
    assert np.array_equal(plain.probs, out.probs) and plain.weight.tolist() == [2, 1, 1]


def test_moments_recover_the_precision_of_a_dirichlet() -> None:
    rng = np.random.default_rng(0)
    for s in (3.0, 30.0):
        every = rng.dirichlet(s * np.array([0.5, 0.3, 0.2]), size=(4000, 1))
        c = evidence_share(every)
        assert c == pytest.approx([s / (s + 3)], abs=0.02)
    agreeing, scattered = (
        np.stack([np.full((5, 2), 0.5) + np.array([-d, d]) * u for u in (1, -1)])
        for d in (0.1, 0.4)
    )
    assert (evidence_share(agreeing) > evidence_share(scattered)).all()


def test_rows_on_which_members_differ_are_more_often_wrong_and_weigh_less() -> None:
    rng = np.random.default_rng(1)
    gold, skill = rng.integers(2, size=3000), rng.choice([0.3, 2.0], size=3000)
    members = [PLAN.weak_labels(member=i) for i in range(4)]
    given = {
        m: two(*1 / (1 + np.exp(-(skill * (2 * gold - 1) + rng.normal(size=3000)))))
        for m in members
    }
    out = evaluate(Bayesian().labels(PLAN, WEAK), given)
    right = out.probs.argmax(1) == gold
    assert right[out.weight > np.median(out.weight)].mean() > right.mean() + 0.02


# Confidence as a weight.


def test_the_weight_is_twice_the_distance_from_a_coin() -> None:
    out = ConfidenceWeighted().weighted(two(0.9, 0.3, 0.5, weight=[1, 2, 1]), seed=0)
    assert out.probs[:, 1].tolist() == [1, 0, 0]
    assert out.weight == pytest.approx([0.8, 2 * 0.4, 0]) and used_rows(out) == [0, 1]
    squared = make_method("confidence_weighted:power=2,hard=false").weighted(two(0.9, 0.3), seed=0)
    assert squared.weight == pytest.approx([0.64, 0.16])
    assert squared.probs[:, 1] == pytest.approx([0.9, 0.3])
    flat = ConfidenceWeighted(power=0.0).weighted(two(0.9, 0.3), seed=0)
    assert flat.weight.tolist() == [1, 1]
    three = Targets(np.float32([[0.6, 0.3, 0.1], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]))
    assert ConfidenceWeighted().weighted(three, seed=0).weight[:2] == pytest.approx([0.4, 1.0])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EnsemW2S(members=1), "members is 1"),
        (lambda: EnsemW2S(folds=1), "folds is 1, .* at least 2, or 0"),
        (lambda: EnsemW2S(pool="max"), "expected one of mean, log"),
        (lambda: Bayesian(members=1), "members is 1"),
        (lambda: ConfidenceWeighted(power=-1.0), "power is -1"),
        (
            lambda: ConfidenceWeighted().weighted(two(0.5, 0.5), seed=0),
            "keeps none of 2 rows",
        ),
    ],
)
def test_bad_fields(make: object, says: str) -> None:
    with pytest.raises(W2SError, match=says):
        make()  # type: ignore[operator]
