"""Nested dropout: the head reads a random prefix of its input in every step.

The columns of the head after the prefix that suits the weak labels of held-out rows best are then
set to 0. ``training.nested_dropout`` has the equations.

Source: Chen et al. 2022 (arXiv 2206.13140), stage 1. There the backbone is trained along and orders
its features; on frozen states the order is the one they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, number
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class NestedDropout(Method):
    """Train the head on prefixes of its input.

    Attributes:
        sigma: width of the distribution of prefixes, in entries of the input, above 0.
        holdout: share of the transfer set, in [0, 0.5], whose weak labels select the prefix that
            the trained head reads; 0: it reads all entries.
    """

    sigma: float = number(100.0, 0.1, 1e6)
    holdout: float = number(0.1, 0.0, 0.5)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        selects = {"holdout": self.holdout, "select_width": True} if self.holdout else {}
        return {"nested_dropout": self.sigma, **selects}
