"""Co-teaching within the steps: two students hand each other the rows with the smallest losses.

``training.co_teaching`` has the equations; ``small_loss`` is the same with whole trainings in place
of batches. The result is the first of the two students.

Source: Han et al. 2018 (arXiv 1804.06872), each student with a half of the batch as in Chen et al.
2022 (arXiv 2206.13140), stage 2; ``nested_dropout|co_teaching`` has both of its stages in one
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, number
from w2s_fast.methods._node import spec_of
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class CoTeaching(Method):
    """Train two students on each other's rows with the smallest losses.

    Attributes:
        forget: share of the rows that are not handed on in the end, in [0, 0.9].
        ramp: fraction of the steps over which this share rises from 0.
    """

    forget: float = number(0.3, 0.0, 0.9)
    ramp: float = number(0.1, 0.0, 1.0)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        from w2s_fast.training.co_teaching import CoTeaching as Exchange

        return {"step_targets": spec_of(Exchange(forget=self.forget, ramp=self.ramp))}
