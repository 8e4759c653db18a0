"""What people pass by mistake is one line for every argument of every function."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError

SCORES = np.random.default_rng(0).normal(size=(8, 3))
PROBLEMS, GOLD, TEXTS = [0, 0, 1, 1, 2, 2, 3, 3], [0, 1] * 4, list("abcdefgh")
VOTES, ONE = (SCORES > 0).astype(int), SCORES[:, 0]
MANY_VOTES = np.random.default_rng(0).integers(0, 2, (60, 3))
RATES = np.array([[[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]] * 3)
MEASURED: dict[str, Any] = {"scores": ONE, "problems": PROBLEMS, "gold": GOLD}
CALLS: dict[str, dict[str, Any]] = {
    "binarize": {"scores": SCORES, "threshold": 0.0},
    "binarize_within_problems": {"scores": SCORES, "problems": PROBLEMS, "balance": 0.5},
    "check_problems": {"problems": PROBLEMS, "n_rows": 8},
    "check_scores": {"scores": SCORES},
    "count_right": {"problems": PROBLEMS, "gold": GOLD},
    "distillation_rows": {
        "problems": PROBLEMS, "prompts": TEXTS, "responses": TEXTS, "probs": [0.5] * 8,
        "weight": [1.0] * 8,
    },
    "gaussian_log_odds": {
        "scores": SCORES, "prior": 0.5, "means": [[0.0] * 3, [1.0] * 3], "within": np.eye(3),
    },
    "generation_verification_gap": {**MEASURED, "k": 2},
    "keep_by_marginal": {"votes": VOTES, "rule": "all"},
    "keep_independent": {"votes": MANY_VOTES, "limit": 0.9, "gold": [0, 1] * 30},
    "majority_verifier": {"answers": TEXTS, "problems": PROBLEMS},
    "min_max_scores": {"scores": SCORES, "reference": SCORES},
    "naive_average": {"scores": SCORES > 0},
    "pass_at_k": {"n_responses": [5, 5], "n_right": [1, 2], "k": 2},
    "quantile_scores": {"scores": SCORES, "reference": SCORES},
    "quantile_thresholds": {"scores": SCORES, "balance": 0.5},
    "select": {"scores": ONE, "problems": PROBLEMS},
    "selection_accuracy": MEASURED,
    "selection_outcomes": MEASURED,
    "weaver_log_odds": {"votes": VOTES, "prior": 0.5, "rates": RATES, "clip": 0.01},
}  # fmt: skip
MISTAKES: list[Any] = [
    None, "x", "", b"x", float("nan"), float("inf"), -1, 0, 2.5, True, 10**400, [10**400] * 8, [],
    [[]], {}, {1: 2}, object(), [None] * 8, [[1, 2], [3]], range(8), [TEXTS] * 8, np.zeros(0),
    np.zeros((2, 2, 2)), np.array(["a", "b"]), np.ones(8) * 1j, np.datetime64("2020-01-01"),
    np.array([1, None, 2], dtype=object), np.ma.masked_array(np.ones(8), mask=[True] * 8),
    np.array(3), torch.tensor(3),
    torch.ones(8), torch.full((8, 3), float("nan")), [torch.ones(2)] * 8,
]  # fmt: skip


def test_every_function_is_in_the_table() -> None:
    functions = {name for name in V.__all__ if inspect.isfunction(getattr(V, name))}
    assert functions == set(CALLS)
    for name, arguments in CALLS.items():
        getattr(V, name)(**arguments)


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_is_one_line(name: str) -> None:
    refused = dict.fromkeys(CALLS[name], 0)
    for argument in CALLS[name]:
        for mistake in MISTAKES:
            if argument == "n_rows":
                continue  # the caller's own number
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    getattr(V, name)(**{**CALLS[name], argument: mistake})
            except W2SError as e:
                refused[argument] += 1
                assert "\n" not in str(e) and len(str(e)) < 400, f"{argument}={mistake!r}: {e}"
    assert all(n > len(MISTAKES) / 2 for argument, n in refused.items() if argument != "n_rows")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_tensors_of_any_dtype_are_scores(kind: torch.dtype) -> None:
    scores = torch.tensor([[1.0, 3.0], [2.0, 1.0]], requires_grad=True).to(kind)
    np.testing.assert_array_equal(V.min_max_scores(scores), [[0, 1], [1, 0]])
    assert V.select(scores[:, 0], torch.tensor([7, 7])).tolist() == [1]
