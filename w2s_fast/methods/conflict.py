"""Students under a conflicting objective, to measure weak-to-strong deception.

They are no way to train a better student: compare each with the same student without conflict
(``metrics.deception_score``, the table of a run's report).

Source: Yang et al. 2024 (arXiv 2406.11431).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, number
from w2s_fast.methods._plan import Plan


class Conflict(Method):
    """Base of these methods, which a run reports beside the student without them."""


@dataclass(frozen=True, kw_only=True)
class ExplicitConflict(Conflict):
    """Reward the student for being wrong where it is wrong, see ``losses.conflict``.

    The term reads the true labels of the transfer set; plan and report name this use.

    Attributes:
        alpha: weight of the conflicting objective.
    """

    alpha: float = number(0.5, 0.0)

    def check_task(self, n_classes: int, n_rows: int) -> None:
        """See ``Method``; the opposite of a class needs two classes."""
        if n_classes != 2:
            raise W2SError(
                f"method 'explicit_conflict' needs two classes, and the task has {n_classes}; the "
                "opposite of a class is not defined among more"
            )

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"conflict": self.alpha}


@dataclass(frozen=True, kw_only=True)
class ImplicitConflict(Conflict):
    """Train also on pairs that another objective prefers, with their true labels.

    The pairs are those of ``task.conflict_path``; plan and report name this use of true labels.

    Attributes:
        ratio: pairs per row of the student's training set, of all there are; drawn by the seed.
    """

    kinds = ("preference",)
    ratio: float = number(1.0, 0.01)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"conflict_rows": self.ratio}
