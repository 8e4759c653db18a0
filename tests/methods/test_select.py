"""Methods that select rows: hand-made labels on which the right rows are known."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.method_plans import evaluate, two, used_rows

from w2s_fast.errors import W2SError
from w2s_fast.methods import Node, Plan, Targets, make_method
from w2s_fast.methods.agree import Agree
from w2s_fast.methods.agree_prior import AgreePrior
from w2s_fast.methods.confident import Confident
from w2s_fast.methods.conformal import Conformal, p_values
from w2s_fast.methods.knn_filter import KNNFilter
from w2s_fast.methods.resample import Resample
from w2s_fast.methods.self_consistency import SelfConsistency
from w2s_fast.methods.small_loss import SmallLoss
from w2s_fast.methods.trajectory import Trajectory, margins, since

PLAN = Plan()
WEAK = PLAN.weak_labels()


def _probs(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_confident_keeps_both_ends_and_their_borders() -> None:
    weak = two(0.0, 0.25, 0.26, 0.5, 0.74, 0.75, 1.0, 0.9, weight=[1, 2, 1, 1, 1, 3, 1, 0])
    out = evaluate(Confident().labels(PLAN, WEAK), {WEAK: weak})
    assert out.weight.tolist() == [1, 2, 0, 0, 0, 3, 1, 0]  # the last row was out before
    assert np.array_equal(out.probs, weak.probs)
    one_sided = Confident(low=0.0, high=0.7, hard=True).confident_rows(weak, seed=0)
    assert used_rows(one_sided) == [0, 4, 5, 6]
    assert one_sided.probs[[0, 4]].tolist() == [[1, 0], [0, 1]]


def test_confident_of_three_classes_looks_at_the_top_alone() -> None:
    weak = Targets(_probs([0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.0, 0.75, 0.25]))
    out = Confident(low=0.0).confident_rows(weak, seed=0)
    assert used_rows(out) == [0, 2]
    assert Confident(hard=True).confident_rows(weak, seed=0).probs[2].tolist() == [0, 1, 0]


def test_nothing_left_is_said() -> None:
    with pytest.raises(W2SError, match="keeps none of 2 rows"):
        Confident().confident_rows(two(0.5, 0.6), seed=0)


def test_resample_draws_confident_rows_more_often() -> None:
    weak = two(*[0.5] * 1000, *[0.1] * 1000, 1.0, weight=[1.0] * 1500 + [2.0] * 500 + [0.0])
    out = evaluate(Resample(power=2).labels(PLAN, WEAK), {WEAK: weak})
    assert np.array_equal(out.weight, np.round(out.weight)) and out.weight.sum() == 2000
    chance = np.array([0.25 * 1000, 0.81 * 500, 0.81 * 2 * 500])
    drawn = [out.weight[a:b].sum() for a, b in ((0, 1000), (1000, 1500), (1500, 2000))]
    assert drawn == pytest.approx(2000 * chance / chance.sum(), rel=0.08)  # 3 deviations or more
    assert out.weight[2000] == 0
    again = Resample(power=2).drawn(weak, seed=0)
    assert np.array_equal(again.weight, out.weight)
    assert not np.array_equal(Resample(power=2).drawn(weak, seed=1).weight, out.weight)


def test_resample_without_draws_is_the_expectation() -> None:
    weak = two(0.5, 0.25, 1.0)
    flat = Resample(power=0, draw=False).drawn(weak, seed=0)
    assert flat.weight is not None and flat.weight.tolist() == [1, 1, 1]
    out = Resample(power=1, draw=False).drawn(weak, seed=0)
    assert out.weight == pytest.approx(np.array([0.5, 0.75, 1.0]) * 3 / 2.25)


def test_agree_asks_every_member() -> None:
    node = Agree(members=3).labels(PLAN, WEAK)
    assert [n for n, _ in node.needs] == ["weak", "member1", "member2"]
    given = {
        WEAK: two(0.9, 0.8, 0.2, 0.6, 0.1, weight=[1, 1, 1, 1, 0]),
        PLAN.weak_labels(member=1): two(0.6, 0.4, 0.4, 0.7, 0.1),
        PLAN.weak_labels(member=2): two(0.6, 0.7, 0.3, 0.4, 0.1),
    }
    out = evaluate(node, given)
    assert used_rows(out) == [0, 2] and np.array_equal(out.probs, given[WEAK].probs)


def test_agree_prior_with_and_without_the_balance() -> None:
    """The student prefers class 1 throughout; which rows it prefers more is what it knows."""
    given = {WEAK: two(0.1, 0.9, 0.2, 0.8), PLAN.prior(): two(0.7, 0.95, 0.93, 0.75)}
    own = evaluate(AgreePrior(balance="own").labels(PLAN, WEAK), given)
    assert used_rows(own) == [1, 3]
    assert used_rows(evaluate(AgreePrior().labels(PLAN, WEAK), given)) == [0, 1]


def test_self_consistency_counts_votes() -> None:
    node = SelfConsistency(members=5, share=0.8).labels(PLAN, WEAK)
    votes = ((0.9, 0.6, 0.6), (0.8, 0.7, 0.6), (0.7, 0.6, 0.6), (0.6, 0.9, 0.1), (0.6, 0.1, 0.1))
    nodes = [WEAK, *(PLAN.weak_labels(member=i) for i in range(1, 5))]
    given = {n: two(*v) for n, v in zip(nodes, votes, strict=True)}
    out = evaluate(node, given)
    assert out.probs[:, 1] == pytest.approx([1.0, 0.8, 0.6])
    assert used_rows(out) == [0, 1]  # four of five are 0.8
    hard = evaluate(SelfConsistency(share=0.0, hard=True).labels(PLAN, WEAK), given)
    assert used_rows(hard) == [0, 1, 2] and hard.probs[:, 1].tolist() == [1, 1, 1]


def test_seven_votes_of_25_are_a_share_of_28_percent() -> None:
    eye = np.eye(9, dtype=np.float32)
    votes = [Targets(eye[[c]]) for c in [0] * 7 + [1, 2, 3] * 6]
    rest = {f"member{i}": v for i, v in enumerate(votes[1:])}
    assert 0.28 * 25 > 7
    assert used_rows(
        SelfConsistency(members=25, share=0.28).majority(votes[0], seed=0, **rest)
    ) == [0]
    with pytest.raises(W2SError, match="keeps none"):
        SelfConsistency(members=25, share=0.29).majority(votes[0], seed=0, **rest)


def test_ties_of_votes_go_to_the_surer_side_then_to_the_first_class() -> None:
    weak = Targets(_probs([0.1, 0.2, 0.7], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]))
    other = Targets(_probs([0.1, 0.8, 0.1], [0.1, 0.6, 0.3], [0.35, 0.4, 0.25]))
    method = SelfConsistency(members=2, share=0.5, hard=True)
    out = method.majority(weak, seed=0, member1=other)
    assert out.probs.argmax(1).tolist() == [1, 2, 0]
    soft = SelfConsistency(members=2, share=0.5).majority(weak, seed=0, member1=other)
    assert soft.probs[0].tolist() == [0, 0.5, 0.5]
    # Class 0 has the largest mean of the second row here, and no vote.
    a, b = Targets(_probs([0.4, 0.6, 0.0])), Targets(_probs([0.45, 0.0, 0.55]))
    assert method.majority(a, seed=0, member1=b).probs.argmax(1).tolist() == [1]


def test_knn_filter_drops_flipped_labels_of_two_clusters() -> None:
    rng = np.random.default_rng(0)
    side = np.arange(60) % 2
    features = (100 + 10 * side[:, None] + rng.normal(size=(60, 4))).astype(np.float32)
    p = np.where(side, 0.9, 0.1)
    flipped = [4, 11, 37]
    p[flipped] = 1 - p[flipped]
    weak = two(*p, weight=[0.0] + [1.0] * 59)
    node = KNNFilter(k=5, layer="3").labels(PLAN, WEAK)
    given = {WEAK: weak, PLAN.features(layer="3"): features}
    assert used_rows(evaluate(node, given)) == [i for i in range(1, 60) if i not in flipped]
    # A row alone with its label would keep itself if it were its own neighbour.
    assert 4 not in used_rows(KNNFilter(k=1).agreed(weak, features, seed=0))


def test_knn_filter_does_not_listen_to_rows_that_are_out() -> None:
    features = np.array([[0.0], [0.1], [5.0], [5.1], [0.05]], dtype=np.float32)
    weak = two(0.9, 0.8, 0.1, 0.2, 0.1, weight=[1, 1, 1, 1, 0])
    assert used_rows(KNNFilter(k=1).agreed(weak, features, seed=0)) == [0, 1, 2, 3]


def test_of_equal_losses_the_first_rows_stay() -> None:
    weak, peer = two(*[1.0] * 1000), two(*[0.9, 0.1] * 500)
    assert used_rows(SmallLoss(forget=0.75).small_loss_rows(weak, peer, seed=0)) == list(
        range(0, 500, 2)
    )


def test_small_loss_keeps_the_smallest_loss_of_the_peer() -> None:
    weak = two(1.0, 1.0, 0.0, 0.0, 1.0, weight=[1, 1, 1, 1, 0])
    peer = two(0.9, 0.3, 0.1, 0.6, 0.99)  # losses 0.11, 1.20, 0.11, 0.92
    out = SmallLoss(forget=0.5).small_loss_rows(weak, peer, seed=0)
    assert used_rows(out) == [0, 2]
    assert used_rows(SmallLoss(forget=0.25).small_loss_rows(weak, peer, seed=0)) == [0, 2, 3]
    assert used_rows(SmallLoss(forget=0.0).small_loss_rows(weak, peer, seed=0)) == [0, 1, 2, 3]


def test_small_loss_exchanges_rows_and_forgets_step_by_step() -> None:
    """Two rounds: the student's round-1 losses choose the peer's rows of round 2, whose losses
    choose the student's. Rows the peer of round 1 disliked come back."""
    node = SmallLoss(forget=0.5, rounds=2).labels(PLAN, WEAK)
    weak = two(1, 1, 1, 1)
    student1 = PLAN.labels(PLAN.student(WEAK))
    peer1 = PLAN.labels(PLAN.student(WEAK, member=1))
    peer_rows = dict(node.needs)["peer"].needs[0][1].needs[0][1]
    assert dict(dict(peer_rows.needs)["peer"].needs)["model"] == PLAN.student(WEAK)
    given = {WEAK: weak, student1: two(0.1, 0.9, 0.9, 0.9), peer1: two(0.9, 0.1, 0.9, 0.9)}
    assert used_rows(evaluate(peer_rows, given)) == [1, 2, 3]  # a quarter is forgotten
    peer2 = PLAN.labels(PLAN.student(peer_rows, member=1))
    given[peer2] = two(0.4, 0.8, 0.9, 0.3)
    assert used_rows(evaluate(node, given)) == [1, 2]
    one = SmallLoss(forget=0.5).labels(PLAN, WEAK)
    assert [n for _, n in one.needs] == [WEAK, peer1]  # the naive student is not needed


def test_each_student_is_trained_on_its_own_rows() -> None:
    """Three rounds: in the second the student learns what the peer chose in the first."""
    node = SmallLoss(forget=0.3, rounds=3).labels(PLAN, WEAK)
    peer3 = dict(dict(dict(node.needs)["peer"].needs)["model"].needs)["labels"]
    student2 = dict(dict(dict(peer3.needs)["peer"].needs)["model"].needs)["labels"]
    assert student2.stage == "apply"
    assert dict(student2.needs)["peer"] == PLAN.labels(PLAN.student(WEAK, member=1))
    assert make_method(dict(student2.settings)["method"]).forget == pytest.approx(0.1)  # type: ignore[attr-defined]


MOMENTS = np.stack(
    [
        two(0.6, 0.4, 0.3, 0.9, 0.1).probs,
        two(0.7, 0.6, 0.4, 0.2, 0.1).probs,
        two(0.9, 0.9, 0.8, 0.9, 0.1).probs,
    ]
)


def test_when_labels_are_learned() -> None:
    ones = np.ones(5, dtype=np.int64)
    assert since(MOMENTS, ones).tolist() == [0, 1, 2, 2, 3]
    p = MOMENTS[..., 1]
    assert margins(MOMENTS, ones) == pytest.approx(np.log(p) - np.log(1 - p), rel=1e-5)
    three = _probs([0.2, 0.5, 0.3])[None]
    assert margins(three, np.array([1])) == pytest.approx(np.log([[0.5 / 0.3]]), rel=1e-5)
    assert margins(three, np.array([0])) == pytest.approx(np.log([[0.2 / 0.5]]), rel=1e-5)


@pytest.mark.parametrize(
    ("score", "order"),
    [
        # mean -log p: .325, .511, .782, .607, 2.3; mean log odds: 1.15, .73, .04, 1.0, -2.2
        ("loss", [0, 1, 3, 2, 4]),
        ("margin", [0, 3, 1, 2, 4]),
        ("early", [0, 1, 3, 2, 4]),  # rows 2 and 3 at the same moment, row 3 at less loss
    ],
)
def test_trajectory_keeps_what_was_learned_well(score: str, order: list[int]) -> None:
    weak = two(1, 1, 1, 1, 1)
    for n in range(1, 6):
        method = Trajectory(share=n / 5, score=score)
        given = {WEAK: weak, PLAN.trajectory(PLAN.student(WEAK, record=True)): MOMENTS}
        assert used_rows(evaluate(method.labels(PLAN, WEAK), given)) == sorted(order[:n])


def test_trajectory_scores_differ() -> None:
    """Row 0: learned first, then doubted badly, once. Row 1: never sure, never lost again."""
    moments = np.stack([two(0.97, 0.4).probs, two(0.02, 0.6).probs, two(0.99, 0.6).probs])
    weak = two(1, 1)
    rows = {s: used_rows(Trajectory(share=0.5, score=s).learned(weak, moments, 0))
            for s in ("loss", "margin", "early")}  # fmt: skip
    assert rows == {"loss": [1], "margin": [0], "early": [1]}
    slow = np.stack([two(0.55, 0.45).probs, two(0.55, 0.99).probs, two(0.55, 0.99).probs])
    assert used_rows(Trajectory(share=0.5, score="early").learned(weak, slow, 0)) == [0]
    assert used_rows(Trajectory(share=0.5, score="loss").learned(weak, slow, 0)) == [1]


def test_p_values_by_hand() -> None:
    """Labels' own probabilities are .9, .8, .6, .3: how many of the others are no larger."""
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    p = p_values(probs, np.array([0, 1, 0, 1]))
    assert p[:, 0].tolist() == [1, 1 / 4, 2 / 4, 2 / 4]
    assert p[:, 1].tolist() == [1 / 4, 3 / 4, 2 / 4, 1 / 4]


@pytest.mark.parametrize("classes", [2, 4])
def test_conformal_sets_cover_the_weak_class(classes: int) -> None:
    """With probability at least 1 - alpha and at most that and 1 / n, good student or bad."""
    rng = np.random.default_rng(0)
    n, alpha, misses = 99, 0.2, []
    for _ in range(200):
        y = rng.integers(classes, size=n)
        probs = rng.dirichlet(np.ones(classes), n)
        probs[np.arange(n), y] += 0.5 * rng.random(n)
        p = p_values(probs, y)
        misses.append((p[np.arange(n), y] <= alpha).mean())
    assert np.mean(misses) <= alpha
    assert np.mean(misses) >= alpha - 1.5 / n


def _conformal_inputs(weak: Targets) -> tuple[Node, dict[Node, Targets]]:
    node = Conformal(alpha=0.1).labels(PLAN, WEAK)
    half = {n: dict(dict(m.needs)["model"].needs)["labels"]
            for n, m in node.needs if n != "weak"}  # fmt: skip
    return node, {half["first"]: evaluate(half["first"], {WEAK: weak}),
                  half["second"]: evaluate(half["second"], {WEAK: weak})}  # fmt: skip


def test_conformal_judges_rows_by_the_student_that_did_not_see_them() -> None:
    """Students of both halves know all but three rows; where they trained they say nonsense."""
    n = 100
    y = np.arange(n) % 2
    weak = two(*np.where(y, 0.8, 0.2), weight=[0.0] * 10 + [1.0] * 90)
    node, halves = _conformal_inputs(weak)
    first, second = (set(used_rows(t)) for t in halves.values())
    assert len(first) == 45 and first | second == set(range(10, 100)) and not first & second
    surprising = {20, 50, 51}
    unsure = {30, 31, 77}
    predicted = np.where(y, 0.95, 0.05) + np.linspace(-0.01, 0.01, n)
    for i in surprising:
        predicted[i] = 1 - predicted[i]
    for i in unsure:
        predicted[i] = 0.5 + (0.2 - 0.001 * i if y[i] else -0.2 + 0.001 * i)
    inputs = dict(node.needs)
    given = {WEAK: weak}
    for name, seen in (("first", first), ("second", second)):
        p = [1 - predicted[i] if i in seen else predicted[i] for i in range(n)]
        given[inputs[name]] = two(*p)
    stay = set(used_rows(evaluate(node, given)))
    assert not stay & surprising and not stay & set(range(10))
    assert len(stay) >= 0.9 * 90 - 3
    weighed = Conformal(weigh=True).plausible(weak, given[inputs["first"]],
                                              given[inputs["second"]], seed=0)  # fmt: skip
    assert weighed.weight is not None and weighed.weight[:10].tolist() == [0] * 10
    twice = Targets(weak.probs, 2 * weak.used.astype(np.float32))
    double = Conformal(weigh=True).plausible(twice, given[inputs["first"]],
                                             given[inputs["second"]], seed=0)  # fmt: skip
    assert np.array_equal(double.weight, 2 * weighed.weight)
    sides = [(w - {*surprising, *unsure}, w & surprising) for w in (first, second)]
    for plain, odd in sides:
        for i in odd:
            assert weighed.weight[i] < min(weighed.weight[j] for j in plain)


def test_conformal_leaves_out_rows_of_two_plausible_classes() -> None:
    weak = two(*[0.9] * 40)
    vague = two(*[0.5] * 40)
    with pytest.raises(W2SError, match="keeps none"):
        Conformal(alpha=0.05).plausible(weak, vague, vague, seed=0)


def test_conformal_needs_rows() -> None:
    weak = two(*[0.9] * 30)
    with pytest.raises(W2SError, match="alpha is 0.05, half of the rows are 15"):
        Conformal(alpha=0.05).plausible(weak, weak, weak, seed=0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Confident(low=0.8, high=0.7), "expected low at most high"),
        (lambda: Confident(high=1.2), "high is 1.2"),
        (lambda: Resample(power=-1), "power is -1"),
        (lambda: Agree(members=1), "members is 1"),
        (lambda: AgreePrior(balance="gold"), "expected one of weak, own"),
        (lambda: SelfConsistency(members=1), "members is 1"),
        (lambda: SelfConsistency(share=2), "share is 2"),
        (lambda: KNNFilter(k=0), "k is 0"),
        (lambda: KNNFilter(layer="top"), "layer is 'top'"),
        (lambda: SmallLoss(forget=1), "forget is 1"),
        (lambda: SmallLoss(rounds=0), "rounds is 0"),
        (lambda: Trajectory(share=0), "share is 0"),
        (lambda: Trajectory(score="aum"), "expected one of loss, margin, early"),
        (lambda: Conformal(alpha=0), "alpha is 0"),
    ],
)
def test_bad_fields(make: object, says: str) -> None:
    with pytest.raises(W2SError, match=says):
        make()  # type: ignore[operator]
