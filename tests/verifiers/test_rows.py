"""Bad rows raise one line that names the value, what was expected, and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError

SCORES = np.array([[0.1, 2.0, -1.0], [0.7, 1.0, 4.0], [0.3, 5.0, 0.0], [0.9, 3.0, 2.0]])
PROBLEMS = ["p", "p", "q", "q"]
GOLD = [0, 1, 1, 0]


def changed(row: int, verifier: int, value: float) -> np.ndarray:
    scores = SCORES.copy()
    scores[row, verifier] = value
    return scores


SCALES: list[Callable[..., np.ndarray]] = [
    V.min_max_scores,
    V.quantile_scores,
    lambda scores: V.quantile_thresholds(scores, 0.5),
]
EVERY: list[Callable[..., np.ndarray]] = [
    *SCALES,
    V.naive_average,
    lambda scores: V.binarize(scores, 0.5),
    lambda scores: V.binarize_within_problems(scores, PROBLEMS, 0.5),
]


@pytest.mark.parametrize("call", EVERY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_named(call: Callable[..., Any], value: float) -> None:
    with pytest.raises(W2SError, match=rf"verifier 2 for row 1 is {value}, one of 1 .*drop"):
        call(changed(1, 2, value))


@pytest.mark.parametrize("call", SCALES)
def test_constant_and_repeated_verifiers_are_named(call: Callable[..., Any]) -> None:
    constant = SCORES.copy()
    constant[:, 1] = 3
    with pytest.raises(W2SError, match=r"verifiers 1 give all 4 rows the same .*\(verifier 1: 3\)"):
        call(constant)
    with pytest.raises(W2SError, match="verifiers 0 and 3 have equal scores in all 4 rows"):
        call(np.c_[SCORES, SCORES[:, 0]])
    zeros = np.array([0.0, 1.0, 2.0, 3.0])
    with pytest.raises(W2SError, match="verifiers 0 and 1 have equal scores"):
        call(np.c_[zeros, np.where(zeros == 0, -0.0, zeros)])


@pytest.mark.parametrize("scores", [SCORES[0], SCORES[:, :0], SCORES[:0], SCORES.reshape(2, 2, 3)])
def test_other_shapes_of_scores_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(W2SError, match=r"scores have shape .*expected \(responses, verifiers\)"):
        V.check_scores(scores)


def test_scores_that_are_no_numbers_are_refused() -> None:
    for scores in ([["a", "b"]], [[1.0], [1.0, 2.0]]):
        with pytest.raises(W2SError, match="scores: not a table of numbers"):
            V.check_scores(scores)


def test_scores_of_other_verifiers_than_the_reference_are_refused() -> None:
    with pytest.raises(W2SError, match="scores have 2 verifiers; expected 3"):
        V.min_max_scores(SCORES[:, :2], reference=SCORES)


@pytest.mark.parametrize("missing", [None, np.nan, "", " ", ["p"]])
def test_a_problem_without_a_name_is_named(missing: Any) -> None:
    with pytest.raises(W2SError, match=r"problems\[2\] is .*expected a name"):
        V.select([0.1, 0.2, 0.3], ["p", "p", missing])


@pytest.mark.parametrize("problems", [["p"], []])
def test_another_number_of_problems_than_rows_is_refused(problems: Any) -> None:
    with pytest.raises(W2SError, match="names for 2 rows; expected a name for each"):
        V.select([0.1, 0.2], problems)


def test_problems_are_numbered_in_the_order_of_their_first_rows() -> None:
    known = V.check_problems(["b", "a", "b", "c"], 4)
    assert known.names == ("b", "a", "c")
    assert known.index.tolist() == [0, 1, 0, 2] and known.sizes.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ([0, 1, 2, 0], r"gold\[2\] is 2; expected 1 for a right response"),
        ([0, np.nan, 1, 0], r"gold\[1\] is nan"),
        ([0, 1], r"gold has shape \(2,\); expected a label per response, \(4,\)"),
        (["yes"] * 4, "gold: not a table of numbers"),
    ],
)
def test_wrong_gold_is_named(gold: Any, message: str) -> None:
    for call in (V.selection_accuracy, V.selection_outcomes, V.generation_verification_gap):
        with pytest.raises(W2SError, match=message):
            call([0.1, 0.2, 0.3, 0.4], PROBLEMS, gold)


def test_scores_of_several_verifiers_are_no_selection() -> None:
    with pytest.raises(W2SError, match=r"shape \(4, 3\); expected one score per response"):
        V.select(SCORES, PROBLEMS)


def test_only_measurements_take_gold() -> None:
    """No function that combines verifiers could see true labels; nothing has them by default.

    The choice of independent verifiers takes them only where they are passed.
    """
    import inspect

    functions = {name: f for name in V.__all__ if inspect.isfunction(f := getattr(V, name))}
    parameters = {name: inspect.signature(f).parameters for name, f in functions.items()}
    takes_gold = {name for name, ps in parameters.items() if "gold" in ps}
    assert parameters["keep_independent"]["gold"].default is None
    takes_gold -= {"keep_independent"}
    assert takes_gold == {
        "count_right", "generation_verification_gap", "selection_accuracy", "selection_outcomes",
    }  # fmt: skip
    assert all(parameters[name]["gold"].default is inspect.Parameter.empty for name in takes_gold)
