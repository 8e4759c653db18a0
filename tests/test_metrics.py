"""Scores, PGR, omission and intervals: against published numbers, brute force and known truth."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_fast import metrics

# Accuracies and PGR in percent, Lang, Huang & Li 2025 (arXiv 2501.13124), main table.
FLOOR = (90.0, 86.0, 87.5, 48.8)
CEILING = (93.4, 89.9, 89.8, 50.8)
DEBATE = {
    "finetune": ((91.5, 44.1), (88.0, 51.3), (88.2, 30.4), (49.5, 35.0)),
    "aux loss": ((91.4, 41.2), (88.2, 56.4), (87.9, 17.4), (49.5, 35.0)),
    "product loss": ((91.6, 47.1), (88.1, 53.8), (88.1, 26.1), (49.2, 20.0)),
    "consultancy": ((91.5, 44.1), (87.8, 46.2), (88.3, 34.8), (49.3, 25.0)),
    "market-making": ((91.6, 47.1), (87.6, 41.0), (88.2, 30.4), (49.5, 35.0)),
    "single weak + debate": ((91.7, 50.0), (88.2, 56.4), (88.4, 39.1), (49.5, 35.0)),
    "finetune ensemble": ((91.8, 52.9), (88.3, 59.0), (88.4, 39.1), (49.7, 45.0)),
    "debate ensemble": ((92.6, 76.5), (88.7, 69.2), (88.8, 56.5), (50.2, 70.0)),
}


def outcomes(weak: float, student: float, ceiling: float, n: int, seed: int) -> metrics.Outcomes:
    """Draw (n,) independent outcomes of the given accuracies."""
    rng = np.random.default_rng(seed)
    return metrics.Outcomes(*(rng.random(n) < a for a in (weak, student, ceiling)), np.arange(n))


@pytest.mark.parametrize("method", DEBATE)
def test_pgr_of_the_debate_table(method: str) -> None:
    for floor, ceiling, (accuracy, published) in zip(FLOOR, CEILING, DEBATE[method], strict=True):
        assert round(100 * metrics.pgr(floor, accuracy, ceiling), 1) == published


@pytest.mark.parametrize(
    ("floor", "ceiling", "n"),
    [(0.4924, 0.4960, 8552), (0.4908, 0.4911, 8552), (0.488, 0.508, 8552), (0.488, 0.508, 1000)],
)
def test_anthropic_hh_is_refused(floor: float, ceiling: float, n: int) -> None:
    why = metrics.omission_reason(floor, ceiling, metrics.gap_se(floor, ceiling, n), n_items=n)
    assert why is not None and "no PGR" in why and f"{floor:.3f}" in why


def test_clear_gaps_are_accepted_and_two_standard_errors_is_the_border() -> None:
    assert (
        metrics.omission_reason(0.6363, 0.9223, metrics.gap_se(0.6363, 0.9223, 1000), n_items=1000)
        is None
    )
    assert metrics.omission_reason(0.80, 0.90, 0.0501, n_items=1000) is not None
    assert metrics.omission_reason(0.80, 0.90, 0.0499, n_items=1000) is None
    assert "not above" in (metrics.omission_reason(0.9, 0.9, 0.0, n_items=1000) or "")
    assert "not above" in (metrics.omission_reason(0.9, 0.8, 0.01, n_items=1000) or "")
    assert metrics.omission_reason(0.2, 0.9, float("inf"), n_items=1) is not None


def test_a_lucky_seed_does_not_speak_for_the_others() -> None:
    def over(*gaps: float) -> str | None:
        seeds = [
            metrics.Gap(
                0.6, 0.6 + g, 0.02, metrics.omission_reason(0.6, 0.6 + g, 0.02, n_items=1000)
            )
            for g in gaps
        ]
        return metrics.omission_reason_over_seeds(seeds, n_items=1000)

    assert "not above" in (over(-0.03, 0.05, -0.02) or "")
    assert "1.9 standard errors" in (over(0.035, 0.05, 0.029) or "")
    assert over(0.035, 0.05, 0.06) is None  # one is refused; all of them are wide enough
    assert over(0.05, 0.06, 0.07) is None
    assert over(0.03, 0.03) == over(0.03) is not None
    unknown = metrics.Gap(0.6, 0.7, None, "why")
    assert metrics.omission_reason_over_seeds(
        [unknown, metrics.Gap(0.6, 0.9, 0.02, None)], n_items=1000
    )


def test_draws_without_a_gap_leave_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    close = outcomes(0.6, 0.62, 0.66, 200, 3)
    low, high = metrics.pgr_interval([close], same_items=True)
    assert np.isfinite(low) and low < high and not recwarn.list


def test_chance_depends_on_the_number_of_classes() -> None:
    se = 0.001
    assert "guessing" in (metrics.omission_reason(0.40, 0.50, se, n_items=500, n_classes=2) or "")
    assert metrics.omission_reason(0.40, 0.50, se, n_items=500, n_classes=4) is None


@pytest.mark.parametrize("decimals", [1, 8], ids=["many ties", "no ties"])
def test_auroc_counts_pairs(decimals: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=80)
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), decimals)
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None]
    expected = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
    assert metrics.auroc(np.stack([1 - scores, scores], 1), labels) == pytest.approx(expected)


def test_auroc_of_three_classes_is_the_mean_over_those_that_occur() -> None:
    probs = np.random.default_rng(1).dirichlet(np.ones(3), 60)
    labels = np.random.default_rng(2).integers(2, size=60)  # class 2 never occurs
    each = [metrics.auroc(np.stack([-probs[:, c], probs[:, c]], 1), labels == c) for c in (0, 1)]
    assert metrics.auroc(probs, labels) == pytest.approx(np.mean(each))
    assert metrics.auroc(probs, np.zeros(60, int)) is None


def _choose(classes: list[int], n_classes: int) -> np.ndarray:
    """(N, C) probabilities whose largest entries are these classes."""
    return 0.1 + 0.5 * np.eye(n_classes)[classes]


def test_balanced_accuracy_and_f1_of_two_classes() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    probs = _choose([0] * 7 + [1] + [1, 0], 2)
    assert metrics.accuracy(probs, labels) == 0.8
    assert metrics.balanced_accuracy(probs, labels) == pytest.approx((7 / 8 + 1 / 2) / 2)
    assert metrics.f1(probs, labels) == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    never = _choose([0] * 10, 2)
    assert metrics.balanced_accuracy(never, labels) == 0.5 and metrics.f1(never, labels) == 0
    none = np.zeros(10, int)
    assert metrics.f1(never, none) is None and metrics.f1(probs, none) == 0
    assert metrics.balanced_accuracy(probs, none) == pytest.approx(0.8)


def test_balanced_accuracy_and_f1_of_more_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])  # classes 2 and 3 never occur; 2 is chosen once
    probs = _choose([0, 0, 0, 2, 1, 0], 4)
    assert metrics.balanced_accuracy(probs, labels) == pytest.approx((3 / 4 + 1 / 2) / 2)
    one, two, three = 2 * 3 / (2 * 3 + 1 + 1), 2 * 1 / (2 * 1 + 0 + 1), 0.0
    assert metrics.f1(probs, labels) == pytest.approx((one + two + three) / 3)


def test_agreement_is_split_by_the_supervisors_errors() -> None:
    gold, weak = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 0])
    student = np.array([0, 1, 1, 0, 1])
    agreement = metrics.agreement(student, weak, gold)
    assert (agreement.all, agreement.weak_right, agreement.weak_wrong) == (3 / 5, 2 / 3, 1 / 2)
    assert metrics.agreement(student, gold, gold).weak_wrong is None


def test_paired_error_is_smaller_and_clusters_make_it_larger() -> None:
    base = outcomes(0.8, 0.8, 0.8, 2000, 0)
    better = base.weak | (np.random.default_rng(1).random(2000) < 0.2)
    o = metrics.Outcomes(base.weak, base.weak, better, base.groups)
    independent = metrics.gap_se(o.weak.mean(), o.ceiling.mean(), 2000)
    diff = o.ceiling.astype(float) - o.weak
    assert metrics.paired_gap_se(o) == pytest.approx(diff.std(ddof=1) / np.sqrt(2000), rel=1e-3)
    assert metrics.paired_gap_se(o) < 0.6 * independent
    twins = metrics.Outcomes(*(np.repeat(m, 4) for m in (o.weak, o.student, o.ceiling)),
                             np.repeat(o.groups, 4))  # fmt: skip
    assert metrics.paired_gap_se(twins) == pytest.approx(metrics.paired_gap_se(o))
    one = metrics.Outcomes(*(m[:5] for m in (o.weak, o.student, o.ceiling)), np.zeros(5, int))
    assert metrics.paired_gap_se(one) == np.inf


def test_interval_covers_the_truth() -> None:
    """95 % intervals over 20 data sets: at least 15 cover (probability of fewer: 3e-4)."""
    truth = (0.8 - 0.7) / (0.95 - 0.7)
    covered = 0
    for seed in range(20):
        low, high = metrics.pgr_interval(
            [outcomes(0.7, 0.8, 0.95, 400, seed)], same_items=True, n_resamples=400
        )
        assert low < high
        covered += low <= truth <= high
    assert covered >= 15


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = [outcomes(0.7, 0.8, 0.95, 1000, s) for s in range(3)]
    apart = [outcomes(0.7, a, 0.95, 1000, s) for s, a in enumerate((0.72, 0.8, 0.92))]

    def width(seeds: list[metrics.Outcomes], same_items: bool) -> float:
        low, high = metrics.pgr_interval(seeds, same_items=same_items, n_resamples=500)
        return high - low

    assert width(apart, False) > 2 * width(alike, False)
    one = [alike[0]] * 3  # the same items thrice are no more evidence than once
    assert width(one, True) > 1.3 * width(one, False)


def test_interval_is_reproducible_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = [outcomes(0.7, 0.8, 0.95, 300, s) for s in range(2)]
    first = metrics.pgr_interval(seeds, same_items=False, n_resamples=300)
    assert metrics.pgr_interval(seeds, same_items=False, n_resamples=300) == first
    monkeypatch.setattr(metrics, "_CHUNK_ITEMS", 300 * 7)
    chunked = metrics.pgr_interval(seeds, same_items=False, n_resamples=300)
    assert chunked == pytest.approx(first, abs=0.05)


def test_large_groups_widen_the_interval() -> None:
    o = outcomes(0.7, 0.8, 0.95, 400, 0)
    twins = metrics.Outcomes(*(np.repeat(m, 9) for m in (o.weak, o.student, o.ceiling)),
                             np.repeat(o.groups, 9))  # fmt: skip
    loose = metrics.Outcomes(twins.weak, twins.student, twins.ceiling, np.arange(3600))

    def width(x: metrics.Outcomes) -> float:
        low, high = metrics.pgr_interval([x], same_items=True, n_resamples=400)
        return high - low

    assert width(twins) == pytest.approx(width(o), rel=0.2)
    assert width(twins) > 2 * width(loose)
