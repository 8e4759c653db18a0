"""Select the response with the highest score of each problem, and measure how often it is right.

Ties: ``select`` returns the first of equally good responses. The accuracy does not depend on their
order: a problem counts with the share of right responses among the equally good ones, which is the
expectation of a choice at random.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.verifiers.rows import Problems, check_gold, check_problems, check_row_scores


def select(scores: Any, problems: Any) -> np.ndarray:
    """Return the row of the response with the highest score for each problem, (n,) int64.

    Problems are in the order of their first rows; the first of equal rows is selected.

    Args:
        scores: (N,).
        problems: (N,) names of problems.

    Raises:
        W2SError: Scores or problems are wrong.
    """
    _, known, best = _best(scores, problems)
    rows = np.flatnonzero(best)[::-1]
    chosen = np.empty(len(known.names), dtype=np.int64)
    chosen[known.index[rows]] = rows  # the last assignment, of the first row, stays
    return chosen


def selection_outcomes(scores: Any, problems: Any, gold: Any) -> np.ndarray:
    """Return whether the selected response is right, (n,) float64; ties give a share.

    Args:
        scores: (N,).
        problems: (N,) names of problems.
        gold: (N,) 1 for right responses and 0 for wrong ones.

    Raises:
        W2SError: Scores, problems or gold are wrong.
    """
    values, known, best = _best(scores, problems)
    right = check_gold(gold, len(values))
    n = len(known.names)
    return np.bincount(known.index, best & right, n) / np.bincount(known.index, best, n)


def selection_accuracy(scores: Any, problems: Any, gold: Any) -> float:
    """Return the share of problems whose selected response is right: success@1.

    Args:
        scores, problems, gold: See ``selection_outcomes``.

    Raises:
        W2SError: Scores, problems or gold are wrong.
    """
    return float(selection_outcomes(scores, problems, gold).mean())


def _best(scores: Any, problems: Any) -> tuple[np.ndarray, Problems, np.ndarray]:
    """Return scores, problems and (N,) bool: no response to the problem has a higher score."""
    values = check_row_scores(scores)
    known = check_problems(problems, len(values))
    top = np.full(len(known.names), -np.inf)
    np.maximum.at(top, known.index, values)
    return values, known, values == top[known.index]
