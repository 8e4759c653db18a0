"""Linear probing: freeze the student's backbone and train its head.

Source: Burns et al. 2023 (arXiv 2312.09390), App. D.2. They train the head with Adam at 1e-3,
batches of 128, for 200 epochs, without weight decay, and stop early on weak labels: set
``student_train`` accordingly, and use ``probe|early_stop``. The ceiling is a probe as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """Train only the head."""

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"freeze": True}
