r"""Soups: a student with the mean of the weights of several students.

    theta = 1/M sum_i theta_i      M = members x losses x learning rates

Students that start from the same pretrained weights mostly end in one basin of the loss, where
their mean is about as good as the mean of their predictions, at the cost of a single model. Errors
of the weak labels that one student fits and another does not are averaged out.

Source: Wortsman et al. 2022, "Model soups" (arXiv 2203.05482): members differ in their
hyperparameters and seeds; the greedy soup (recipe 1) takes members in order of their held-out
accuracy, while the accuracy of the mean does not fall. There accuracy is by true labels; here it is
agreement with the weak labels of held-out rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import ANY_KIND, Method, number
from w2s_fast.methods._merge import merged, varied
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Soup(Method):
    """Average the weights of students that differ by seed, loss and learning rate.

    Attributes:
        members: number of seeds, at least 1; the first is the student's own.
        losses: specs of losses joined by "+", such as "xent+logconf"; empty: the student's.
        lr_factors: factors of the learning rate joined by "+", such as "0.5+1+2"; empty: 1.
    """

    kinds: ClassVar[tuple[str, ...]] = ANY_KIND
    members: int = number(3, 1)
    losses: str = ""
    lr_factors: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._losses()
        self._factors()
        if len(self._variants()) < 2:
            raise W2SError(
                f"{type(self).__name__}: members is {self.members}, with one loss and one learning "
                "rate; expected at least 2 students to average"
            )

    def final(self, plan: Plan, student: Node) -> Node:
        factor = dict(student.settings).get("lr_factor", 1.0)
        members = []
        for variant in self._variants():
            if "lr_factor" in variant:
                variant = {**variant, "lr_factor": variant["lr_factor"] * factor}
            members.append(varied(student, variant))
        return merged(members, **self._merge())

    def _merge(self) -> dict[str, Any]:
        """Return how stage `student` merges the members."""
        return {"how": "soup"}

    def _variants(self) -> list[dict[str, Any]]:
        """Return the settings of each member in which it differs from the student."""
        seeds = [{"member": i} if i else {} for i in range(self.members)]
        losses = [{"loss": spec} for spec in self._losses()] or [{}]
        factors = [{"lr_factor": f} if f != 1 else {} for f in self._factors()] or [{}]
        return [{**a, **b, **c} for a, b, c in itertools.product(seeds, losses, factors)]

    def _losses(self) -> list[str]:
        """Return the canonical specs of ``losses``."""
        from w2s_fast.losses import canonical_spec

        specs = self.losses.split("+") if self.losses else []
        try:
            return [canonical_spec(spec.strip()) for spec in specs]
        except W2SError as e:
            raise W2SError(
                f"{type(self).__name__}: losses is {self.losses!r}; expected specs of losses "
                f"joined by '+': {e}"
            ) from None

    def _factors(self) -> list[float]:
        try:
            factors = [float(f) for f in self.lr_factors.split("+")] if self.lr_factors else []
        except ValueError:
            factors = [-1.0]
        if not all(math.isfinite(f) and f > 0 for f in factors):
            raise W2SError(
                f"{type(self).__name__}: lr_factors is {self.lr_factors!r}; expected numbers above "
                "0 joined by '+'"
            )
        return factors


@dataclass(frozen=True, kw_only=True)
class GreedySoup(Soup):
    """Average those students whose mean agrees best with the weak labels of held-out rows.

    Attributes:
        members, losses, lr_factors: see ``Soup``.
        holdout: share of the transfer set that is held out, in [0.01, 0.5].
    """

    kinds = Method.kinds
    holdout: float = number(0.1, 0.01, 0.5)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"holdout": self.holdout, "shared_holdout": True}

    def _merge(self) -> dict[str, Any]:
        return {"how": "greedy_soup", "holdout": self.holdout}
