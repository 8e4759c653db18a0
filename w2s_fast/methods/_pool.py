r"""Several class probabilities of a row made one.

    mean   q_k = sum_m a_m q_mk
    log    q_k ~ exp(sum_m a_m log q_mk), normalised

In ``log`` one member that rules a class out weighs much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from w2s_fast.methods._balance import log_probs

POOLS = ("mean", "log")


def pool(every: Sequence[np.ndarray], how: str, weights: Sequence[float] = ()) -> np.ndarray:
    """(N, C) float32 from members (N, C); ``weights`` of the members, alike if there are none.

    Args:
        every: probabilities of each member. In ``log`` those below 1e-6 count as that.
        how: a name of ``POOLS``.
        weights: not negative, some above 0; only their ratios count.
    """
    stacked = np.stack(every).astype(np.float64)
    a = np.array(weights or [1.0] * len(every), dtype=np.float64)
    a /= a.sum()
    if how == "mean":
        return np.tensordot(a, stacked, 1).astype(np.float32)
    probs = np.exp(np.tensordot(a, log_probs(stacked), 1))
    return (probs / probs.sum(1, keepdims=True)).astype(np.float32)
