r"""Pool several class probabilities per row into one.

    mean   q_k = sum_m a_m q_mk
    log    q_k ~ exp(sum_m a_m log q_mk), normalised

In ``log``, a single member can rule a class out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from w2s_fast.methods._balance import log_probs

POOLS = ("mean", "log")


def pool(every: Sequence[np.ndarray], how: str, weights: Sequence[float] = ()) -> np.ndarray:
    """Return (N, C) float32, pooled over members (N, C).

    Args:
        every: probabilities of each member; ``log`` clips them below at 1e-6.
        how: name in ``POOLS``.
        weights: non-negative weights of the members, some above 0; empty: equal weights.
    """
    stacked = np.stack(every).astype(np.float64)
    a = np.array(weights or [1.0] * len(every), dtype=np.float64)
    a /= a.sum()
    if how == "mean":
        return np.tensordot(a, stacked, 1).astype(np.float32)
    probs = np.exp(np.tensordot(a, log_probs(stacked), 1))
    return (probs / probs.sum(1, keepdims=True)).astype(np.float32)
