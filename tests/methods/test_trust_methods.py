"""Methods that weigh, select and pool labels by trust: by hand, and as plans."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.method_plans import evaluate, two, used_rows

from w2s_fast.methods import Plan
from w2s_fast.methods.selective import Selective
from w2s_fast.methods.teacher_weights import TeacherWeights
from w2s_fast.methods.trust import Trust

PLAN = Plan()
WEAK = PLAN.weak_labels()


def test_trust_multiplies_the_weights_of_rows() -> None:
    trust = np.array([0.9, 0.6, 0.0, 0.3], dtype=np.float32)
    weak = two(0.1, 0.2, 0.3, 0.4, weight=[2, 1, 0, 1])
    out = evaluate(Trust().labels(PLAN, WEAK), {WEAK: weak, PLAN.trust(WEAK): trust})
    assert out.weight == pytest.approx([2 * 0.9 / 0.6, 1, 0, 0.3 / 0.6])
    assert np.array_equal(out.probs, weak.probs)
    node = Trust(mode="filter", share=0.67, layer="last").labels(PLAN, WEAK)
    out = evaluate(node, {WEAK: weak, PLAN.trust(WEAK, layer="last"): trust})
    assert used_rows(out) == [0, 1] and out.weight[0] == 2


def test_selective_takes_own_answers_and_smooths_the_rest() -> None:
    """Two clusters of five; the row of weight 0 is no neighbor and keeps its label."""
    features = np.repeat([[0.0], [9.0]], 5, axis=0) + np.linspace(0, 0.4, 10)[:, None]
    weak = two(0.9, 0.9, 0.9, 0.2, 0.9, 0.1, 0.1, 0.8, 0.1, 0.6, weight=[1] * 9 + [0])
    own, knows = two(*[0.25] * 10), np.array([0.9] + [0.5] * 8 + [0.9], dtype=np.float32)
    method = Selective(alpha=0.9, k=3)
    out = method.select(weak, own, knows, features.astype(np.float32), seed=0)
    assert out.probs[0, 1] == pytest.approx(0.25)
    assert (out.probs[1:5, 1] > 0.6).all() and (out.probs[5:9, 1] < 0.4).all()
    assert out.probs[9, 1] == pytest.approx(0.6) and used_rows(out) == list(range(9))
    plain = Selective(alpha=0).select(weak, own, knows, features, seed=0)
    assert plain.probs[1:] == pytest.approx(weak.probs[1:])


def test_p_ik_is_fitted_to_the_students_own_answers() -> None:
    """Of the weak split, and no weak model of a fold is trained."""
    node = Selective(layer="3", l2=0.5, folds=4).labels(PLAN, WEAK)
    knows = dict(dict(node.needs)["knows"].needs)
    assert knows["own"] == PLAN.prior("weak")
    assert knows["weak_features"] == PLAN.features("weak", "3")
    assert not any(name.startswith("fold") for name in knows)
    folds = dict(dict(Trust().labels(PLAN, WEAK).needs)["trust"].needs)
    assert {n: folds[n] for n in folds if n.startswith("fold")} == PLAN.out_of_fold()


def test_teachers_that_the_student_explains_get_more_weight() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 300)
    features = rng.normal(size=(300, 4)).astype(np.float32)
    features[:, 0] += 4 * (2 * truth - 1)
    used = np.arange(300) < 250
    members = [PLAN.weak_labels(member=i) for i in range(3)]
    flip = [rng.random(300) < share for share in (0.4, 0.05, 0.35)]
    given = {m: two(*np.where(f, 1 - truth, truth) * 0.8 + 0.1) for m, f in zip(members, flip,
             strict=True)}  # fmt: skip
    given[WEAK] = two(*given[WEAK].probs[:, 1], weight=used.astype(float).tolist())
    node = TeacherWeights(members=3).labels(PLAN, WEAK)
    out = evaluate(node, {**given, PLAN.features(): features})
    mean = np.mean([given[m].probs for m in members], 0)
    right, before = ((p.argmax(1) == truth)[used].mean() for p in (out.probs, mean))
    assert right > 0.93 and right > before + 0.05
    assert np.array_equal(out.probs[~used], given[WEAK].probs[~used])
    assert out.weight.tolist() == used.tolist()
