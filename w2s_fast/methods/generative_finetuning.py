"""Generative finetuning: train the language model on the task's texts, without labels, first.

This makes the task more salient to the student. The ceiling starts from the same model, so the gap
is due to labels alone.

Source: Burns et al. 2023 (arXiv 2312.09390), §5.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import ANY_KIND, Method
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class GenerativeFinetuning(Method):
    """Start the student from its language model trained on the transfer texts."""

    kinds = ANY_KIND

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"start": plan.tuned()}
