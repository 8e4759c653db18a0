"""Early stopping: keep the weights with the highest accuracy on held-out rows.

Source: Burns et al. 2023 (arXiv 2312.09390): students overfit weak errors, so the paper stops early
by weak labels, and shows with true labels what a perfect stop would gain (§5.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from w2s_fast.methods._base import Method, number
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class EarlyStop(Method):
    """Keep the weights that agree best with the weak labels of held-out rows.

    Attributes:
        holdout: share of the transfer set that is held out, in [0.01, 0.5].
    """

    holdout: float = number(0.1, 0.01, 0.5)
    _keep: ClassVar[str] = "weak"

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"keep": self._keep, "holdout": self.holdout}


@dataclass(frozen=True, kw_only=True)
class GroundTruthEarlyStop(EarlyStop):
    """Diagnostic: ``EarlyStop`` by the true labels of the held-out rows.

    It shows what early stopping could gain at best. Plan and report name the use of true labels.
    """

    _keep: ClassVar[str] = "gold"
