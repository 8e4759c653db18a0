r"""Put the scores of all verifiers on the scale from 0 to 1.

    min-max    s' = (s - min_j) / (max_j - min_j)        over the rows of all problems
    quantile   s' = (#{s_j < s} + #{s_j = s} / 2) / N    the mid-distribution function

Min-max keeps distances and is decided by the two most extreme rows. Quantiles depend on the order
alone, so they are equal for all increasing transforms of a verifier.

Source of min-max, and of the rule that scores in [0, 1] are left as they are: arXiv 2506.18203.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.verifiers.rows import check_scores


def min_max_scores(scores: Any, reference: Any = None) -> np.ndarray:
    """Rescale each verifier's scores linearly to [0, 1], (N, m) float64.

    A verifier whose reference scores are within [0, 1] is left as it is: probabilities and verdicts
    have their scale already.

    Args:
        scores: (N, m).
        reference: (N', m) scores that set the ranges, from which ``scores`` may differ: scores
            outside of them become 0 or 1. None: ``scores``.

    Raises:
        W2SError: A score is not finite, or a verifier of the reference is constant or repeated.
    """
    matrix, known = _with_reference(scores, reference)
    low, high = known.min(0), known.max(0)
    in_range = (low >= 0) & (high <= 1)
    low, high = np.where(in_range, 0.0, low), np.where(in_range, 1.0, high)
    # Halves, because high - low of two large numbers may overflow.
    return np.clip((matrix / 2 - low / 2) / (high / 2 - low / 2), 0.0, 1.0)


def quantile_scores(scores: Any, reference: Any = None) -> np.ndarray:
    """Replace each verifier's scores by their quantiles in the reference, (N, m) float64.

    Args:
        scores: (N, m).
        reference: (N', m) scores that define the quantiles; None: ``scores``.

    Raises:
        W2SError: A score is not finite, or a verifier of the reference is constant or repeated.
    """
    matrix, known = _with_reference(scores, reference)
    ordered = np.sort(known, axis=0)
    columns = [
        (np.searchsorted(a, x, "left") + np.searchsorted(a, x, "right")) / (2 * len(a))
        for a, x in zip(ordered.T, matrix.T, strict=True)
    ]
    return np.stack(columns, 1)


def naive_average(scores: Any) -> np.ndarray:
    """Average the scores of all verifiers, (N,) float64: the baseline that trusts all alike.

    Args:
        scores: (N, m) in [0, 1].

    Raises:
        W2SError: A score is not finite or outside of [0, 1].
    """
    matrix = check_scores(scores)
    outside = (matrix < 0) | (matrix > 1)
    if outside.any():
        row, verifier = (int(i) for i in np.argwhere(outside)[0])
        raise W2SError(
            f"score of verifier {verifier} for row {row} is {matrix[row, verifier]:g}; an average "
            "needs one scale: call min_max_scores or quantile_scores first"
        )
    return matrix.mean(1)


def _with_reference(scores: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    if reference is None:
        matrix = check_scores(scores, varying=True)
        return matrix, matrix
    known = check_scores(reference, varying=True)
    return check_scores(scores, known.shape[1]), known
