"""FixMatch: where the student is certain of a row, it learns its class from a harder view of it.

The class comes from the row without dropout; the student that learns it sees the row without some
of its tokens, or a frozen one without some of its features. ``training.self_targets`` has the
equations; all of it happens within the steps of one training.

Source: Sohn et al. 2020 (arXiv 2001.07685), with augmented images for views, labelled rows beside
the unlabelled ones, and no target for uncertain rows (``below=drop``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, choice, number
from w2s_fast.methods._node import spec_of
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class FixMatch(Method):
    """Replace the weak labels of rows of which the student is certain by its own class.

    Attributes:
        threshold: least probability of the student's class, in [0, 1].
        below: what other rows learn: their "weak" label, or nothing ("drop").
        drop: share of the tokens, or of cached features, that the learning student does not see.
        decay: the class is that of a moving average of the student's weights; 0: of the student.
        start: fraction of the steps that learn the weak labels alone before.
    """

    threshold: float = number(0.95, 0.0, 1.0)
    below: str = choice("weak", ("weak", "drop"))
    drop: float = number(0.1, 0.0, 0.9)
    decay: float = number(0.0, 0.0, 0.9999)
    start: float = number(0.0, 0.0, 0.99)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        from w2s_fast.training.self_targets import SelfTargets

        targets = SelfTargets(
            threshold=self.threshold, below=self.below, drop=self.drop, decay=self.decay,
            start=self.start, target="hard",
        )  # fmt: skip
        return {"step_targets": spec_of(targets)}
