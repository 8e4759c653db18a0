"""The table of the alarm: what counts as a fall, and the totals of planted rows."""

from __future__ import annotations

from typing import Any

from bench.alarm.command import CONDITIONS, SEEDS, load
from bench.alarm.table import fall_step, falls, table


def row(accuracy: list[float], alarm: int | None, labels: str = "weak model") -> dict[str, Any]:
    """Return a row of six evaluations; the student fits wrong labels from its alarm on."""
    wrong = [0.1 if alarm is None or k < alarm else 0.5 for k in range(6)]
    return {
        "student": "pretrained", "labels": labels, "epochs": 3, "loss": "xent", "seed": 0,
        "steps": [10, 20, 30, 40, 50, 60], "accuracy": accuracy, "alarm": alarm,
        "wrong_agreement": None if labels == "true" else wrong,
        "cpu": "a cpu", "torch": "2", "git_sha": "abc",
    }  # fmt: skip


def test_a_fall_is_of_means_of_three_evaluations() -> None:
    high, low = [0.9] * 3, [0.8] * 3
    assert falls(row(high + low, None)) and fall_step(row(high + low, None)) == 30
    assert not falls(row(low + high, None))
    assert not falls(row([0.9, 0.9, 0.5, 0.9, 0.9, 0.9], None))
    assert not falls(row([*high, 0.89, 0.89, 0.89], None))


def test_totals_of_planted_rows() -> None:
    fell = [row([0.9] * n + [0.8] * (6 - n), alarm) for n, alarm in ((3, 1), (3, 2), (4, 4))]
    missed, needless = row([0.9] * 3 + [0.8] * 3, None), row([0.8] * 6, 3)
    text = table([*fell, missed, needless, row([1.0] * 6, None, "true")])
    lines = text.splitlines()
    assert lines[2].startswith("| pretrained | weak model | 3 | `xent` | 5 | 4 | 3 | 1 | ")
    assert lines[2].endswith("| 0.500 → 0.500 |")
    assert lines[3] == "| pretrained | true | 3 | `xent` | 1 | 0 | 0 | 0 | – | – |"
    assert "Of 4 alarms, 3 were in runs whose true accuracy fell, and in 4 the student" in text
    assert "Of 4 runs whose accuracy fell, 3 had an alarm." in text
    assert "came 10 steps before to 10 steps after the accuracy fell (median +0; rank" in text


def test_the_committed_rows_are_those_of_the_command() -> None:
    keys = {(r["student"], r["labels"], r["epochs"], r["loss"], r["seed"]) for r in load()}
    assert keys == {
        (c.student, c.labels, c.epochs, c.loss, s) for c in CONDITIONS for s in SEEDS
    } and len(load()) == len(keys)
