"""Targets that a training makes anew in every step, from predictions of all rows of the step.

A first pass without gradients predicts the rows of the step, over all micro-batches and processes;
``rows`` turns predictions and weak labels into the targets and weights that the loss learns. The
divisor of the step stays that of the weak labels' rows: a row that gets a smaller weight counts for
less, and the others do not count for more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from w2s_fast.losses._base import IGNORE
from w2s_fast.losses._fields import RangeChecked
from w2s_fast.specs import build


@dataclass(frozen=True, kw_only=True)
class StepTargets(RangeChecked):
    """Base of these targets.

    Attributes:
        branches: students that are trained together, see ``training.co_teaching``.
    """

    branches: ClassVar[int] = 1

    def active(self, step_frac: float) -> bool:
        """Return whether a step, at this fraction of all steps, needs the first pass."""
        return True

    def rows(
        self, logits: Tensor, weak: Tensor, weight: Tensor, step_frac: float
    ) -> tuple[Tensor, Tensor]:
        """Return targets and weights of the R rows of a step, in the order of the batch.

        Leading dimensions, such as those of many heads, are independent of each other.

        Args:
            logits: (..., R, C) of the first pass, (..., R, 2, C) of two branches.
            weak: (..., R, C) soft weak labels.
            weight: (..., R) row weights; rows of weight 0 are outside of every statistic.
            step_frac: optimizer step / total steps.

        Returns:
            Targets (..., R, C), and weights (..., R) or (..., R, 2).
        """
        raise TypeError(f"{type(self).__name__} must define rows")


def make_step_targets(spec: str) -> StepTargets:
    """Build step targets from ``module:Class:field=value``, as ``methods.spec_of`` writes it.

    Raises:
        W2SError: The class cannot be imported, or a value does not fit.
    """
    return build(spec, {}, StepTargets, "step targets")


def soft_rows(weak: Tensor, weight: Tensor | None, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return soft labels (R, C) and weights (R,) of hard or soft ones; -100 has weight 0."""
    dtype = weak.dtype if weak.is_floating_point() else torch.float32
    if weight is None:
        weight = torch.ones(len(weak), dtype=dtype, device=weak.device)
    if weak.is_floating_point():
        return weak, weight
    used = weak != IGNORE
    soft = torch.nn.functional.one_hot(torch.where(used, weak, 0), n_classes)
    return soft.to(dtype), torch.where(used, weight, 0.0)
