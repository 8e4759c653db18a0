r"""Train with a penalty on the drift of the student's states from its initial ones.

    loss + strength mean_i w_i |h_i - h_i^0|^2 / mean_j |h_j^0|^2        see ``training.anchor``

Labels stay. The ceiling has no weak labels to drift towards and is trained without the penalty;
``student_train.anchor`` is the same for every student and the ceiling.

Source: Le et al. 2026, Representation Anchoring (arXiv 2605.25629).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, number
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class AnchorStates(Method):
    """Penalise the drift of what the head reads; nothing changes for a frozen backbone.

    Attributes:
        strength: factor of the mean relative squared distance, above 0.
    """

    strength: float = number(0.1, 1e-6)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"anchor": self.strength}
