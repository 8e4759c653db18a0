"""Mixup: train on mixtures of pairs of rows, at the head's input, and of their labels.

Mixed labels are never certain, so the student is not trained to full confidence in any weak label,
right or wrong. ``w2s_fast.training.mixup`` has the equations. With label smoothing and an
interpolation of weights it is the recipe of BANG: ``mixup|interpolate@smoothing``.

Sources: Zhang et al. 2018 (arXiv 1710.09412); Verma et al. 2019 (arXiv 1806.05236); Zhang et al.
2023, "Spurious feature diversification improves out-of-distribution generalization" (BANG, arXiv
2309.17230).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, number
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Mixup(Method):
    """Train the student on mixtures; the ceiling trains as ``student_train`` says.

    Attributes:
        alpha: of Beta(alpha, alpha), from which the share of a row in its mixture is drawn; in
            [0.01, 100].
    """

    alpha: float = number(0.2, 0.01, 100.0)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"mixup": self.alpha}
