"""When to stop: the moment of a training that scores best on rows held out.

Sources: Burns et al. 2023 (arXiv 2312.09390): students overfit weak errors, so the paper stops
early by weak labels, and shows by true ones what a perfect stop would gain (§5.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from w2s_fast.methods._base import Method
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class EarlyStop(Method):
    """Keep the student of the moment that agrees best with the weak labels of rows held out.

    Attributes:
        holdout: share of the transfer set that is held out, in [0.01, 0.5].
    """

    holdout: float = 0.1
    _keep: ClassVar[str] = "weak"

    def __post_init__(self) -> None:
        self._check("holdout", 0.01, 0.5)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        """See ``Method.training``."""
        return {"keep": self._keep, "holdout": self.holdout}


@dataclass(frozen=True, kw_only=True)
class GroundTruthEarlyStop(EarlyStop):
    """Diagnostic: the same by the TRUE labels of those rows, which nobody has in earnest.

    It shows what stopping could gain at best. The use of true labels is part of the plan and of
    the report.
    """

    _keep: ClassVar[str] = "gold"
