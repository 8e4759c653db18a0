"""Difficulty of rows by perplexity: stages from easy to hard, and the hardest rows.

    perplexity of a completion = exp( -log p(completion | prompt) / number of its tokens )

under the model that is about to be trained. A training in stages (``train(..., stages=...)``)
visits the easy rows first, in all their epochs, then the next stage. iTool (Zeng et al. 2025, arXiv
2501.09766) warms up so before its rounds of preference optimisation, with stages by the complexity
of the tasks; their released code has the perplexity, and uses it to select the hardest rows of
every round. Stages by perplexity are the choice made here, because they need no knowledge of the
task; any other measure of difficulty fits the same functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from w2s_fast.errors import W2SError


def perplexity(logprob_sum: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """Compute the perplexity of completions.

    Args:
        logprob_sum: (N,) log-probabilities summed over tokens, nats; see `sequence_logprob`.
        n_tokens: (N,) tokens that were summed, the end token included if it was.

    Returns:
        (N,) float64, at least 1 for log-probabilities of at most 0; inf where it overflows.

    Raises:
        W2SError: Shapes differ, a log-probability is not finite, or a row has no tokens.
    """
    logprob_sum, n_tokens = np.asarray(logprob_sum, np.float64), np.asarray(n_tokens)
    if logprob_sum.ndim != 1 or logprob_sum.shape != n_tokens.shape:
        raise W2SError(
            f"logprob_sum has shape {logprob_sum.shape}, n_tokens {n_tokens.shape}; expected one "
            "number a row in both, (N,)"
        )
    _check_rows("logprob_sum", logprob_sum, np.isfinite(logprob_sum), "a finite number")
    _check_rows("n_tokens", n_tokens, n_tokens >= 1, "at least 1 token")
    with np.errstate(over="ignore"):
        return np.exp(-logprob_sum / n_tokens)


def difficulty_stages(difficulty: np.ndarray, n_stages: int = 3) -> np.ndarray:
    """Divide rows into stages of nearly equal size, from easy to hard.

    Args:
        difficulty: (N,) such as perplexities; rows of equal difficulty keep their order.
        n_stages: 1 to N.

    Returns:
        (N,) int64 stages 0 (easiest) to ``n_stages`` - 1, for ``train(..., stages=...)``.

    Raises:
        W2SError: A difficulty is NaN, or there are fewer rows than stages.
    """
    ranks = _ranks(difficulty)
    if not 1 <= n_stages <= len(ranks):
        raise W2SError(
            f"n_stages is {n_stages} for {len(ranks)} rows; expected 1 to the number of rows"
        )
    return ranks * n_stages // len(ranks)


def hardest_rows(
    difficulty: np.ndarray, share: float = 0.3, groups: Sequence[Hashable] | None = None
) -> np.ndarray:
    """Select the hardest rows, of every group the same share.

    The released code of iTool selects 30 %, separately among the responses with and without a tool
    call.

    Args:
        difficulty: (N,) such as perplexities; of equal ones the first rows are easier.
        share: Share of the rows of a group, rounded down; above 0, at most 1.
        groups: N names of groups, or None for one group.

    Returns:
        Rows in increasing order, int64.

    Raises:
        W2SError: A difficulty is NaN, a share is out of range or selects no row, or the numbers of
            rows differ.
    """
    ranks = _ranks(difficulty)
    names = [None] * len(ranks) if groups is None else list(groups)
    if len(names) != len(ranks):
        raise W2SError(f"groups has {len(names)} names for {len(ranks)} rows; expected one a row")
    if not 0 < share <= 1:
        raise W2SError(f"share is {share}; expected a number above 0, at most 1")
    members: dict[Hashable, list[int]] = {}
    for row in np.argsort(ranks).tolist():
        members.setdefault(names[row], []).append(row)
    selected = [row for rows in members.values() for row in rows[len(rows) - _part(rows, share) :]]
    if not selected:
        raise W2SError(
            f"share={share} of {len(ranks)} rows in {len(members)} groups selects no row; use a "
            "larger share"
        )
    return np.sort(np.array(selected, dtype=np.int64))


def _part(rows: Sequence[int], share: float) -> int:
    return int(len(rows) * share)


def _ranks(difficulty: np.ndarray) -> np.ndarray:
    """Return (N,) ranks from 0, the easiest; of equal rows the first is easier."""
    difficulty = np.asarray(difficulty)
    if difficulty.ndim != 1 or not len(difficulty):
        raise W2SError(
            f"difficulty has shape {difficulty.shape}; expected one number a row, (N,), of at "
            "least one row"
        )
    _check_rows("difficulty", difficulty, ~np.isnan(difficulty), "a number")
    ranks = np.empty(len(difficulty), dtype=np.int64)
    ranks[np.argsort(difficulty, kind="stable")] = np.arange(len(difficulty))
    return ranks


def _check_rows(name: str, values: np.ndarray, good: np.ndarray, expected: str) -> None:
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise W2SError(f"{name}[{row}] is {values[row]}; expected {expected}")
