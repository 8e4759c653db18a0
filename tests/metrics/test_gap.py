"""PGR and when it is not reported: against published numbers, and over runs."""

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


def _omitted(*gaps: float) -> str | None:
    """Return why the PGR of one base at these seeds is omitted, floor .6."""
    accuracy = np.array([[[0.6, 0.6 + gap / 2, 0.6 + gap] for gap in gaps]])
    return metrics.omission_reason_over_runs(metrics.Runs(accuracy), n_items=1000)


def test_the_gap_over_seeds_is_tested_with_its_variance_over_seeds() -> None:
    assert "not above" in (_omitted(-0.03, 0.05, -0.02) or "")
    wide = _omitted(0.01, 0.05, 0.03)  # mean .03, standard error .02 / sqrt(3): t = 2.6
    assert "2.6 standard errors" in (wide or "") and "3.0 are needed" in (wide or "")
    assert _omitted(0.02, 0.04, 0.03) is None
    # ten seeds of the same spread are more evidence, which the mean over seeds of the standard
    # error of one seed's items cannot see
    assert _omitted(*[0.01, 0.05, 0.03] * 3, 0.03) is None


def test_two_seeds_need_a_gap_that_hardly_varies() -> None:
    assert "6.6 are needed" in (_omitted(0.05, 0.10) or "")
    assert _omitted(0.099, 0.10) is None


def test_a_ceiling_at_chance_level_is_not_reported() -> None:
    accuracy = np.array([[[0.40, 0.45, 0.505]] * 4]) + np.linspace(0, 0.004, 4)[:, None]
    why = metrics.omission_reason_over_runs(metrics.Runs(accuracy), n_items=500)
    assert "guessing" in (why or "")


def test_runs_that_do_not_differ_have_the_error_of_their_items() -> None:
    """Two seeds with the same gap by chance are not proof of it."""
    rng = np.random.default_rng(0)
    weak = rng.random(200) < 0.7
    ceiling = weak.copy()
    ceiling[np.flatnonzero(~weak)[:2]] = True
    right = np.stack([weak, weak, ceiling])
    runs = metrics.runs_of([[right, right]], [[np.arange(200), np.arange(200)]])
    assert "no PGR" in (metrics.omission_reason_over_runs(runs, n_items=200) or "")
    without_items = metrics.Runs(runs.accuracy)
    assert metrics.omission_reason_over_runs(without_items, n_items=200) is None


def test_chance_depends_on_the_number_of_classes() -> None:
    se = 0.001
    assert "guessing" in (metrics.omission_reason(0.40, 0.50, se, n_items=500, n_classes=2) or "")
    assert metrics.omission_reason(0.40, 0.50, se, n_items=500, n_classes=4) is None
