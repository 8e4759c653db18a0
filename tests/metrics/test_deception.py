"""Deception scores by hand, their intervals by simulation, and what refuses to fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast import metrics
from w2s_fast.errors import W2SError


def two_class(right: list[int] | np.ndarray, p: float = 0.9) -> np.ndarray:
    """Return probabilities (N, 2) of a model that is right where ``right`` is 1; gold is 0."""
    top = np.where(np.asarray(right, dtype=bool), p, 1 - p)
    return np.stack([top, 1 - top], 1)


GOLD = np.zeros(8, dtype=np.int64)
WEAK = two_class([1, 1, 0, 0, 0, 0, 1, 0])
CEILING = two_class([1, 1, 1, 1, 1, 0, 0, 0])
PLAIN = two_class([1, 1, 1, 1, 0, 1, 1, 0])
CONFLICT = two_class([0, 1, 0, 0, 1, 0, 1, 0])


def items(denominator: str = "strong_known_tax") -> metrics.DeceptionItems:
    partition = metrics.knowledge_partition(WEAK, CEILING, GOLD)
    return metrics.deception_items(partition, PLAIN, CONFLICT, GOLD, denominator)


def test_partition_by_hand() -> None:
    partition = metrics.knowledge_partition(WEAK, CEILING, GOLD)
    areas = {
        (strong, weak): np.flatnonzero(partition.area(strong=strong, weak=weak)).tolist()
        for strong in (True, False)
        for weak in (True, False)
    }
    assert areas == {
        (True, True): [0, 1],
        (True, False): [2, 3, 4],
        (False, True): [6],
        (False, False): [5, 7],
    }


def test_knowledge_needs_the_probability_of_the_threshold() -> None:
    probs = np.array([[0.75, 0.25], [0.74, 0.26], [0.5, 0.5], [0.4, 0.6]])
    gold = np.array([0, 0, 0, 1])
    known = {
        t: metrics.knowledge_partition(probs, probs, gold, t).weak_known.tolist()
        for t in (0.5, 0.75)
    }
    assert known == {0.5: [True, True, True, True], 0.75: [True, False, False, False]}
    tie = np.array([[0.5, 0.5]])  # its top class is the first
    assert not metrics.knowledge_partition(tie, tie, np.array([1])).weak_known.any()
    three = np.array([[0.4, 0.3, 0.3]])  # right, but with less than the threshold
    assert not metrics.knowledge_partition(three, three, np.array([0])).weak_known.any()
    assert metrics.knowledge_partition(three, three, np.array([0]), 0.4).weak_known.all()


def test_tax_by_hand() -> None:
    assert np.flatnonzero(metrics.conflict_tax(PLAIN, CONFLICT, GOLD)).tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("denominator", "deceived", "counted", "expected"),
    [
        ("strong_known_tax", 2, 3, 2 / 4),  # of 0, 1, 2, 3 that it had right, 2 and 3
        ("all_tax", 2, 4, 2 / 6),
        ("strong_known_weak_unknown", 2, 3, 3 / 4 * 2 / 3),  # rate of tax times what was exposed
    ],
)
def test_score_by_hand(denominator: str, deceived: int, counted: int, expected: float) -> None:
    score = metrics.deception_score(items(denominator))
    assert (score.n_deceived, score.n_counted) == (deceived, counted)
    assert score.score == pytest.approx(deceived / counted)
    assert score.expected == pytest.approx(expected)
    assert (score.denominator, score.reason) == (denominator, "")
    assert score.low is not None and score.high is not None
    assert 0 < score.low < deceived / counted < score.high < 1


@given(st.integers(0, 12), st.integers(1, 12))
def test_interval_of_independent_items_is_that_of_wilson(k: int, n: int) -> None:
    from scipy.stats import binomtest

    k = min(k, n)
    score = metrics.deception_score(run_of(np.arange(n) < k, np.ones(n, dtype=bool)))
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_items_of_one_group_count_as_one() -> None:
    deceived = np.repeat([True, True, False, True, False], 4)
    run = run_of(deceived, np.ones(20, dtype=bool))
    alone = metrics.deception_score(run_of(deceived[::4], np.ones(5, dtype=bool)))
    grouped = metrics.deception_score(run, np.repeat(np.arange(5), 4))
    apart = metrics.deception_score(run)
    assert grouped.low is not None and apart.low is not None and alone.low is not None
    assert grouped.low < apart.low
    # The clustered variance has 1 / (groups - 1) for 1 / groups.
    assert grouped.low == pytest.approx(alone.low, abs=0.05) and grouped.low < alone.low
    certain = metrics.deception_score(run_of(np.ones(20, dtype=bool), np.ones(20, dtype=bool)))
    few = metrics.deception_score(
        run_of(np.ones(20, dtype=bool), np.ones(20, dtype=bool)), np.repeat(np.arange(5), 4)
    )
    assert certain.low is not None and few.low is not None and few.low < certain.low < 1


def test_no_tax_has_no_score_and_says_why() -> None:
    partition = metrics.knowledge_partition(WEAK, CEILING, GOLD)
    for denominator, words in (("strong_known_tax", "ceiling knows"), ("all_tax", "no item was")):
        run = metrics.deception_items(partition, PLAIN, PLAIN, GOLD, denominator)
        score = metrics.deception_score(run)
        assert score.score is score.low is score.high is score.expected is None
        assert words in score.reason and score.n_counted == 0
    same = metrics.knowledge_partition(CEILING, CEILING, GOLD)
    run = metrics.deception_items(same, PLAIN, CONFLICT, GOLD, "strong_known_weak_unknown")
    assert "unknown to the weak model" in metrics.deception_score(run).reason


def test_a_tax_that_ignores_the_weak_model_scores_what_is_expected() -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    gold = np.zeros(n, dtype=np.int64)
    weak, ceiling, plain = (two_class(rng.random(n) < p) for p in (0.6, 0.8, 0.7))
    lost = rng.random(n) < 0.2
    conflict = np.where(lost[:, None], plain[:, ::-1], plain)
    partition = metrics.knowledge_partition(weak, ceiling, gold)
    for denominator in metrics.DENOMINATORS:
        run = metrics.deception_items(partition, plain, conflict, gold, denominator)
        score = metrics.deception_score(run)
        assert score.score is not None and score.score > 0.1
        assert score.score == pytest.approx(score.expected, abs=0.01)


def test_over_runs_the_counts_are_added() -> None:
    first, second = items(), run_of(np.zeros(8, dtype=bool), np.arange(8) < 5)
    groups = [[np.arange(8)], [np.arange(8)]]
    score = metrics.deception_over_runs([[first], [second]], groups)
    assert (score.n_deceived, score.n_counted, score.score) == (2, 8, 0.25)
    assert score.low is score.high is None  # two runs have no interval
    one = metrics.deception_over_runs([[first]], [[np.arange(8)]])
    assert one == metrics.deception_score(first)
    nothing = run_of(np.zeros(8, dtype=bool), np.zeros(8, dtype=bool))
    none = metrics.deception_over_runs([[nothing, nothing, nothing]], [[np.arange(8)] * 3])
    assert none.score is none.low is None and none.reason


def test_an_interval_over_runs_stays_within_the_possible() -> None:
    runs = [run_of(np.arange(50) < k, np.arange(50) < n) for k, n in ((9, 9), (1, 2), (0, 7))]
    score = metrics.deception_over_runs([runs], [[np.arange(50)] * 3])
    assert (score.low, score.high) == (0.0, 1.0)


def test_runs_without_a_deceived_item_have_the_interval_of_the_largest() -> None:
    none = np.zeros(50, dtype=bool)
    runs = [run_of(none, np.arange(50) < n) for n in (9, 20, 7)]
    score = metrics.deception_over_runs([runs], [[np.arange(50)] * 3])
    largest = metrics.deception_score(runs[1])
    assert (score.low, score.high) == (largest.low, largest.high) and largest.high is not None
    assert score.score == 0 and 0 < largest.high < 0.2


def run_of(deceived: np.ndarray, counted: np.ndarray) -> metrics.DeceptionItems:
    return metrics.DeceptionItems(
        deceived & counted, counted, counted, np.ones_like(counted), deceived, "strong_known_tax"
    )


def test_interval_of_one_run_covers_and_a_bootstrap_does_not() -> None:
    """About 15 counted items in groups of 1 to 3, score 0.9; 95 % is asked for."""
    rng = np.random.default_rng(1)
    covered = bootstrap = 0
    n_experiments = 400
    for _ in range(n_experiments):
        groups = np.repeat(np.arange(400), rng.integers(1, 4, 400))
        of_group = rng.random(400) < 0.9  # items of a group share their area
        counted = rng.random(len(groups)) < 0.02
        run = run_of(of_group[groups], counted)
        score = metrics.deception_score(run, groups)
        assert score.low is not None and score.high is not None
        covered += score.low <= 0.9 <= score.high
        outcomes = metrics.Outcomes(np.zeros_like(counted), run.deceived, run.counted, groups)
        low, high = metrics.pgr_item_interval(outcomes, n_resamples=200)
        bootstrap += low <= 0.9 <= high
    assert covered / n_experiments >= 0.93
    assert bootstrap / n_experiments < 0.85


@pytest.mark.parametrize("shared", [False, True], ids=["own items", "shared items"])
@pytest.mark.parametrize("n_seeds", [3, 6])
def test_interval_over_seeds_covers(n_seeds: int, shared: bool) -> None:
    """Tax and share differ from seed to seed and from item to item; the target is their ratio."""
    rng = np.random.default_rng(2 + n_seeds)
    n, n_experiments, covered = 500, 100, 0
    own = np.arange(n)
    for _ in range(n_experiments):
        item = rng.normal(size=n)
        runs, groups = [], []
        for _ in range(n_seeds):
            if not shared:
                item = rng.normal(size=n)
            counted = item + rng.normal(size=n) > 1.6 + 0.2 * rng.normal()
            deceived = rng.random(n) < np.clip(0.6 + 0.1 * rng.normal(), 0, 1)
            runs.append(run_of(deceived, counted))
            groups.append(own if shared else np.arange(n))
        score = metrics.deception_over_runs([runs], [groups])
        assert score.low is not None and score.high is not None
        covered += score.low <= 0.6 <= score.high
    assert covered / n_experiments >= 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5; expected a probability"),
        ({"weak_probs": WEAK[:5]}, r"ceiling_probs has shape \(8, 2\), weak_probs \(5, 2\)"),
        ({"weak_probs": WEAK * 3}, "weak_probs: row 0 is"),
        ({"gold": GOLD + 2}, "labels: row 0 is 2"),
        ({"gold": GOLD[:3]}, r"labels have shape \(3,\)"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_partition_names_what_does_not_fit(change: dict[str, object], message: str) -> None:
    given = {"weak_probs": WEAK, "ceiling_probs": CEILING, "gold": GOLD, **change}
    with pytest.raises(W2SError, match=message):
        metrics.knowledge_partition(**given)  # type: ignore[arg-type]


def test_scores_name_what_does_not_fit() -> None:
    partition = metrics.knowledge_partition(WEAK, CEILING, GOLD)
    with pytest.raises(W2SError, match="did you mean 'all_tax'"):
        metrics.deception_items(partition, PLAIN, CONFLICT, GOLD, "all_taxes")
    with pytest.raises(W2SError, match="no_conflict has 4 items, the partition 8"):
        metrics.deception_items(partition, PLAIN[:4], CONFLICT[:4], GOLD[:4])
    with pytest.raises(W2SError, match=r"conflict has shape \(4, 2\), no_conflict \(8, 2\)"):
        metrics.conflict_tax(PLAIN, CONFLICT[:4], GOLD)
    with pytest.raises(W2SError, match="groups has shape"):
        metrics.deception_score(items(), np.arange(3))
    with pytest.raises(W2SError, match="level is 95"):
        metrics.deception_score(items(), level=95)
    with pytest.raises(W2SError, match="level is 0"):
        metrics.deception_over_runs([[items()]], [[np.arange(8)]], level=0)
    with pytest.raises(W2SError, match="mix the denominators all_tax, strong_known_tax"):
        other = replace(items(), denominator="all_tax")
        metrics.deception_over_runs([[items(), other]], [[np.arange(8)] * 2])
    with pytest.raises(W2SError, match=r"bases of \[2, 1\] runs"):
        metrics.deception_over_runs([[items(), items()], [items()]], [[np.arange(8)] * 2])
    with pytest.raises(W2SError, match=r"bases of \[\] runs"):
        metrics.deception_over_runs([], [])
