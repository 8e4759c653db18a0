r"""Turn scores into votes (N, m) int8: 1 accepts a response, 0 rejects it, -1 abstains.

    L_ij = 1[s_ij >= tau_j]

The threshold tau is one number, one per verifier, or the quantile at which a verifier accepts the
share of responses that is right (``quantile_thresholds``). A reward model trained on preferences
determines rewards only up to a function of the prompt, so comparing them with a threshold across
problems has no meaning; ``binarize_within_problems`` compares the responses to each problem.

Sources: thresholds and quantiles at the class balance, arXiv 2506.18203; the indeterminacy of
rewards: Rafailov et al. 2023 (arXiv 2305.18290), Lemma 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.verifiers.rows import check_problems, check_scores, check_share, numbers, shown


def binarize(scores: Any, threshold: Any) -> np.ndarray:
    """Accept responses whose score is at least the threshold, (N, m) int8 of 0 and 1.

    Args:
        scores: (N, m).
        threshold: A number, or (m,) numbers, a threshold per verifier.

    Raises:
        W2SError: Scores or thresholds are wrong, or no verifier both accepts and rejects.
    """
    matrix = check_scores(scores)
    thresholds = numbers("threshold", threshold)
    if thresholds.shape not in ((), (matrix.shape[1],)) or not np.isfinite(thresholds).all():
        raise W2SError(
            f"threshold is {shown(threshold)}; expected one finite number or "
            f"{matrix.shape[1]}, one per verifier"
        )
    votes = (matrix >= thresholds).astype(np.int8)
    if len(votes) > 1 and (votes == votes[0]).all():
        raise W2SError(
            f"with threshold {shown(threshold)} every verifier votes alike for all "
            f"{len(votes)} rows; scores are from {matrix.min():g} to {matrix.max():g}: choose a "
            "threshold in between"
        )
    return votes


def quantile_thresholds(scores: Any, balance: float) -> np.ndarray:
    """Return per verifier the threshold that accepts a given share of responses, (m,) float64.

    The threshold is the ceil(balance N)-th largest score; responses tied with it are accepted too.
    A verifier whose scores are 0 and 1 gives verdicts already and gets the threshold 1.

    Args:
        scores: (N, m).
        balance: Share of responses that are right, in (0, 1).

    Raises:
        W2SError: Scores are wrong, a verifier is constant or repeated, or the balance is no share.
    """
    matrix = check_scores(scores, varying=True)
    check_share("balance", balance)
    # Rounding of balance * N must not move the threshold to the next row.
    rank = max(1, int(np.ceil(balance * len(matrix) - 1e-9)))
    thresholds = np.partition(matrix, len(matrix) - rank, axis=0)[len(matrix) - rank]
    verdicts = ((matrix == 0) | (matrix == 1)).all(0)
    return np.where(verdicts, 1.0, thresholds)


def binarize_within_problems(scores: Any, problems: Any, balance: float) -> np.ndarray:
    """Accept the best share of the responses to each problem, (N, m) int8 of -1, 0 and 1.

    A response is accepted if its mid-distribution quantile among the responses to its problem is
    above ``1 - balance``, rejected below it, and gets no vote at it: two responses that tie, or the
    middle one of three at a balance of 1/2.

    Args:
        scores: (N, m).
        problems: (N,) names of problems.
        balance: Share of responses that are right, in (0, 1).

    Raises:
        W2SError: Scores or problems are wrong, the balance is no share, or no problem has two
            responses.
    """
    matrix = check_scores(scores)
    known = check_problems(problems, len(matrix))
    check_share("balance", balance)
    if known.sizes.max() < 2:
        raise W2SError(
            f"each of {len(known.names)} problems has one response; expected two or more to compare"
        )
    sizes = known.sizes[known.index]
    votes = np.empty(matrix.shape, dtype=np.int8)
    for verifier, column in enumerate(matrix.T):
        # Integers, so that equality with the boundary does not depend on rounding.
        excess = _twice_mid_rank(column, known.index) - 2 * sizes * (1 - balance)
        on_boundary = np.abs(excess) < 1e-9 * sizes
        votes[:, verifier] = np.where(on_boundary, -1, excess > 0)
    return votes


def _twice_mid_rank(column: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return (N,) int64: rows of the same problem below this one, twice, plus rows equal to it."""
    order = np.lexsort((column, index))
    problem, value = index[order], column[order]
    n = len(order)
    new_problem = np.r_[True, problem[1:] != problem[:-1]]
    new_value = new_problem | np.r_[True, value[1:] != value[:-1]]
    starts = np.flatnonzero(new_value)
    run = np.cumsum(new_value) - 1
    first = np.maximum.accumulate(np.where(new_problem, np.arange(n), 0))
    ends = np.r_[starts[1:], n]
    twice = (starts[run] - first) + (ends[run] - first)
    out = np.empty(n, dtype=np.int64)
    out[order] = twice
    return out
