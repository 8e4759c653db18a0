"""Calls of the cross-entropy that the tests of its numbers and of its contract share."""

from __future__ import annotations

from typing import Any

import torch

from w2s_fast.ops.reference import cross_entropy_sample
from w2s_fast.testing import device

# Rules beyond two classes. The late gate (median) and the known one run different phases.
LATE, OPEN, KNOWN = {"rule": "median"}, {"rule": "argmax"}, {"rule": "fixed", "threshold": 0.6}


def sample(
    kind: str,
    n: int = 5,
    v: int = 17,
    dtype: torch.dtype = torch.float32,
    regime: str = "plain",
    **kw: Any,
) -> dict[str, Any]:
    call = cross_entropy_sample(n, v, dtype, device(), seed=n + v, kind=kind, regime=regime)
    if "rule" in kw:
        kw.setdefault("aux", 0.4)
    if isinstance(kw.get("threshold"), float):
        kw["threshold"] = torch.tensor(kw["threshold"])
    return call | kw
