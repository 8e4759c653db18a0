"""Train the student on easy completions first, ordered by their perplexity.

The perplexity of every completion under the student before its training divides the rows into
stages of equal size; all epochs of a stage precede those of the next. Everything is learned, only
the order differs.

Source: the warm-up of Zeng et al. 2025 (arXiv 2501.09766), whose stages are by the complexity of
the tasks; perplexity is what their released code measures to select the hardest rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, number
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class EasyToHard(Method):
    """Train in stages from low to high perplexity.

    Attributes:
        stages: Number of stages.
    """

    kinds = ("generation",)

    stages: int = number(3, 2)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"stages": self.stages}
