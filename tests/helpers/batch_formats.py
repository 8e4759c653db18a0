"""Rows of a batch in every container that people have."""

from __future__ import annotations

from typing import Any

import numpy as np

Row = dict[str, Any]


LAST: list[Row] = [  # K numbers that are meant for the last token, and soft labels of a vocabulary
    {"input_ids": [5, 6], "weak_ids": [6, 7], "weak_probs": [0.25, 0.5], "weak_rest": 0.25,
     "weak_weight": [0.0, 1.0]},
    {"input_ids": [5], "weak_ids": [8], "weak_probs": [1.0], "weak_rest": 0.0, "weak_weight": [2]},
]  # fmt: skip


def ragged(value: Any) -> Any:
    """As ``datasets`` gives what has no shape in NumPy: an object array of arrays."""
    nested = isinstance(value, list) and isinstance(value[0], list)
    if not nested:
        return np.asarray(value)
    out = np.empty(len(value), dtype=object)
    out[:] = [np.asarray(x) for x in value]
    return out
