"""The benchmark of delta learning: its table, and a learner small enough for seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.delta.command import BASES, SEEDS, load
from bench.delta.learner import Models, Setting, make_items, measure
from bench.delta.table import table


def row(base: int, seed: int, change: float) -> dict[str, Any]:
    scores = dict.fromkeys(("stronger", "weaker", "reversed", "chosen"), 0.5)
    return {
        "base": base, "seed": seed, "student": 0.8, "pairs": 0.8 + change, **scores,
        "counts": {"paired": 10 + seed}, "setting": {"n_prompts": 20, "n_test": 5},
        "cpu": "c", "torch": "t", "git_sha": "g",
    }  # fmt: skip


def test_table() -> None:
    rows = [row(b, s, 0.01 * (b + 1) - 0.02 * (s == 2)) for b in range(3) for s in range(3)]
    text = table(rows)
    assert "| student after the pairs | 0.813 | +0.013 | -0.011 to +0.038 |" in text
    assert "| student | 0.800 |  |  |" in text
    assert "| student after the reversed pairs | 0.500 | -0.300 | – |" in text
    assert "3 bases with 3 seeds each; 20 prompts, 10 to 12 pairs" in text
    assert "raise the accuracy in 7 of 9 runs" in text
    assert "No rows" in table([])


def test_items_are_sorted_and_differ_by_seed() -> None:
    prompts, answers = make_items(50, 1, 2)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert sorted(prompt.removesuffix(" :").split()) == answer.split()
    assert make_items(50, 1, 3)[0] != prompts and make_items(50, 1, 2)[0] == prompts


@pytest.mark.slow
def test_models_reach_their_targets_and_learn() -> None:
    setting = replace(
        Setting(), student=0.3, stronger=0.2, weaker=0.05, pretrain_lr=4e-3, hidden=32,
        n_prompts=128, n_validation=50, n_test=100,
    )  # fmt: skip
    models = Models(5, setting)
    validation = make_items(50, 5, 2)
    assert models.accuracy(models.student, *validation) >= 0.3
    got = measure(models, 5, 0)
    assert got["counts"]["paired"] + got["counts"]["equal_texts"] == 128
    assert all(0 <= got[name] <= 1 for name in ("student", "pairs", "reversed", "chosen"))
    assert got["setting"]["loss"] == "dpo_norm:beta=5"


def test_committed_rows_are_of_the_committed_setting() -> None:
    rows = load()
    if not rows:
        pytest.skip("no rows have been recorded")
    assert [(r["base"], r["seed"]) for r in rows] == [(b, s) for b in BASES for s in SEEDS]
    assert all(r["setting"] == vars(Setting()) for r in rows)
