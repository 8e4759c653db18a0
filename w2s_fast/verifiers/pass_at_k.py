r"""Pass@k, and the gap between what a generator can do and what selection gets out of it.

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{j<k} (1 - c / (n - j))

of n responses with c right ones: the probability that k responses, drawn without replacement,
include a right one. It is unbiased for the pass rate of k new responses; 1 - (1 - c/n)^k is not.
The logarithm of the product is summed as log1p, so no factorial overflows and no digits are lost.

    generation-verification gap = pass@k - selection accuracy

Sources: pass@k: Chen et al. 2021 (arXiv 2107.03374), equation 1; the gap: arXiv 2506.18203.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.verifiers.rows import check_gold, check_problems, numbers, shown
from w2s_fast.verifiers.selection import selection_accuracy

MOST = 2**53  # larger integers are not exact in float64


def pass_at_k(n_responses: Any, n_right: Any, k: int) -> np.ndarray:
    """Compute the unbiased pass@k of each problem, (n,) float64; their mean is that of a set.

    Args:
        n_responses: (n,) integers, or one for all problems.
        n_right: (n,) integers from 0 to ``n_responses``.
        k: From 1 to the smallest number of responses.

    Raises:
        W2SError: A count is wrong, or a problem has fewer than k responses.
    """
    right, total = _counts("n_right", n_right), _counts("n_responses", n_responses)
    if right.ndim != 1 or total.shape not in ((), right.shape):
        raise W2SError(
            f"n_right has shape {right.shape} and n_responses {total.shape}; expected one number "
            "per problem (n,), and n_responses the same or one number for all"
        )
    total = np.broadcast_to(total, right.shape)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise W2SError(f"k is {shown(k)}; expected an integer of at least 1")
    _check_each(
        total >= k, total, f"responses; expected at least k = {shown(k)}: lower k or sample more"
    )
    _check_each(right <= total, right, "right responses; expected at most as many as responses")
    # With fewer than k wrong responses every draw has a right one: a factor is 0.
    certain = total - right < k
    log_fail = np.zeros(right.shape)
    for j in range(int(k)):
        log_fail += np.log1p(-np.where(certain, 0, right) / (total - j))
    return np.where(certain, 1.0, -np.expm1(log_fail))


def count_right(problems: Any, gold: Any) -> tuple[np.ndarray, np.ndarray]:
    """Count responses and right responses of each problem, in the order of their first rows.

    Args:
        problems: (N,) names of problems.
        gold: (N,) 1 for right responses and 0 for wrong ones.

    Returns:
        (n,) int64 responses and (n,) int64 right responses.

    Raises:
        W2SError: Problems or gold are wrong.
    """
    right = check_gold(gold)
    known = check_problems(problems, len(right))
    return known.sizes, np.bincount(known.index[right], minlength=len(known.names))


def generation_verification_gap(
    scores: Any, problems: Any, gold: Any, k: int | None = None
) -> float:
    """Return the mean pass@k minus the selection accuracy.

    Args:
        scores: (N,), see ``selection_accuracy``.
        problems: (N,) names of problems.
        gold: (N,) 1 for right responses and 0 for wrong ones.
        k: None: all responses of each problem, the share of problems with any right response; then
            the gap is what a perfect verifier would gain.

    Raises:
        W2SError: Scores, problems, gold or k are wrong.
    """
    accuracy = selection_accuracy(scores, problems, gold)
    total, right = count_right(problems, gold)
    passed = (right > 0).astype(np.float64) if k is None else pass_at_k(total, right, k)
    return float(passed.mean()) - accuracy


def _counts(name: str, values: Any) -> np.ndarray:
    counts = numbers(name, values)
    whole = (counts >= 0) & (counts < MOST) & (counts == np.floor(counts))
    if not counts.size or not whole.all():
        raise W2SError(f"{name} is {shown(values)}; expected integers of at least 0")
    return counts.astype(np.int64)


def _check_each(fits: np.ndarray, counts: np.ndarray, message: str) -> None:
    if not fits.all():
        at = int(np.flatnonzero(~fits)[0])
        raise W2SError(f"problem {at} has {int(counts[at])} {message}")
