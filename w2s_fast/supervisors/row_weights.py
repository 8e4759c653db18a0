r"""Row weights of a posterior, for the losses.

    covered      w_i = 1 if any supervisor votes for row i, else 0
    confidence   w_i = 1 - H(q_i) / log C with votes, else 0
    equal        w_i = 1

Rows without votes have the class balance as their posterior, which teaches a student the balance
and nothing else; ``covered`` leaves them out. Source of the confidence: COSINE (Yu et al. 2021,
arXiv 2010.07835), eq. 6.
"""

from __future__ import annotations

import numpy as np


def row_weights(posterior: np.ndarray, covered: np.ndarray, rule: str) -> np.ndarray | None:
    """Return the weight of every row.

    Args:
        posterior: (N, C) class probabilities.
        covered: (N,) bool: rows with votes.
        rule: Name in ``ROW_WEIGHTS``.

    Returns:
        (N,) float32 in [0, 1]; None if all rows weigh the same.
    """
    if rule == "equal":
        return None
    if rule == "covered":
        return None if covered.all() else covered.astype(np.float32)
    probs = posterior.astype(np.float64)
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(1) / np.log(probs.shape[1])
    return (np.clip(1 - entropy, 0, 1) * covered).astype(np.float32)
