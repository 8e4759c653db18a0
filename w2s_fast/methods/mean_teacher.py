"""Mean teacher: the student also learns the predictions of the average of its own weights.

The average changes slowly and errs less than any step, so it does not follow the errors of single
weak labels. Its targets count by its certainty, 1 - H / log K. ``training.self_targets`` has the
equations; all of it happens within the steps of one training.

Sources: Tarvainen & Valpola 2017 (arXiv 1703.01780), with mean squared error between the two
predictions where this is cross-entropy; weights by the teacher's certainty after WSCoL's uncertain
pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, choice, number
from w2s_fast.methods._node import spec_of
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class MeanTeacher(Method):
    """Mix the weak labels with the predictions of a moving average of the student's weights.

    Attributes:
        decay: of the average, in [0, 0.9999]; 0: the student of the step itself.
        share: of its predictions in the targets, in [0, 1].
        ramp: fraction of the steps over which this share rises.
        drop: share of the tokens, or of cached features, that the student does not see.
        result: whose weights the student ends with: those of the "teacher" or the "student".
    """

    decay: float = number(0.99, 0.0, 0.9999)
    share: float = number(0.5, 0.0, 1.0)
    ramp: float = number(0.2, 0.0, 1.0)
    drop: float = number(0.0, 0.0, 0.9)
    result: str = choice("teacher", ("teacher", "student"))

    def training(self, plan: Plan) -> Mapping[str, Any]:
        from w2s_fast.training.self_targets import SelfTargets

        targets = SelfTargets(
            decay=self.decay, share=self.share, ramp=self.ramp, drop=self.drop,
            final=self.result if self.decay else "student", score="entropy", weigh=True,
        )  # fmt: skip
        return {"step_targets": spec_of(targets)}
