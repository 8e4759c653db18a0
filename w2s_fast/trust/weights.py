r"""Row weights from P(label right).

    soft     t_i / mean t
    filter   1 for the rows with the largest t_i, 0 for the rest

Source of the filter: Uzunoglu, Zhang & Khashabi 2026 (arXiv 2606.01000), who train on the most
trusted rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.trust._checks import check_number

MODES = ("soft", "filter")


def trust_weights(
    trust: Any, mode: str = "soft", *, share: float | None = None, threshold: float | None = None
) -> np.ndarray:
    """Return row weights (n,) float32 from the probabilities that labels are right.

    Args:
        trust: (n,) probabilities.
        mode: "soft": weights proportional to ``trust`` with mean 1; "filter": 1 or 0.
        share: For "filter": share of rows that are kept, at least one row; ties keep the first.
        threshold: For "filter", instead of ``share``: rows with at least this trust are kept.

    Raises:
        W2SError: A value does not fit, or no row would be kept.
    """
    values = check_trust(trust)
    if mode not in MODES:
        raise W2SError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    if mode == "soft":
        if share is not None or threshold is not None:
            raise W2SError(
                f"mode is 'soft' with share={share} and threshold={threshold}; expected neither, "
                "use mode='filter'"
            )
        return (values / values.mean()).astype(np.float32)
    if (share is None) == (threshold is None):
        raise W2SError(
            f"mode is 'filter' with share={share} and threshold={threshold}; expected one of them"
        )
    if threshold is not None:
        kept = values >= check_number("threshold", threshold, 0, 1)
        if not kept.any():
            raise W2SError(
                f"threshold is {threshold}, which none of {len(values)} rows reaches; expected at "
                f"most {values.max():.3g}, the largest trust"
            )
        return kept.astype(np.float32)
    count = max(1, round(check_number("share", share, 0, 1) * len(values)))
    weight = np.zeros(len(values), dtype=np.float32)
    weight[np.argsort(-values, kind="stable")[:count]] = 1
    return weight


def check_trust(trust: Any, name: str = "trust") -> np.ndarray:
    """Return probabilities (n,) as float64.

    Raises:
        W2SError: They are no probabilities, or all are 0.
    """
    array = np.asarray(trust)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iuf":
        raise W2SError(f"{name} has shape {array.shape}; expected (rows,), a probability per row")
    values = array.astype(np.float64)
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        row = int(bad.argmax())
        raise W2SError(f"{name}: row {row} is {values[row]}; expected a probability in [0, 1]")
    if not values.any():
        raise W2SError(f"{name} is 0 for all {len(values)} rows; expected some above 0")
    return values
