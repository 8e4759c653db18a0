"""What one eager call of the cross-entropy carries through autograd, whichever way it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.ops.loss_call import LossResult, LossSpec, Stat
from w2s_fast.ops.targets import LossInputs

CONSUMED = (
    "second backward through w2s_fast.cross_entropy(inplace=True): the logits were overwritten by "
    "their gradient, which the first backward returned; use inplace=False with retain_graph=True"
)


@dataclass(slots=True)
class EagerCall:
    """One eager call on its way through autograd; the forward fills ``result``."""

    inputs: LossInputs | None
    spec: LossSpec
    reduction: str
    weight_dtype: torch.dtype | None
    inplace: bool = False
    consumed: bool = False  # the logits now hold their gradient
    result: LossResult | None = None

    @property
    def mean(self) -> bool:
        """Whether the sum of the losses is divided by the rows that count."""
        return self.reduction == "mean"


def snapshot(spec: LossSpec) -> None:
    """Copy the coefficient that a later backward needs: a schedule may have moved on by then."""
    if isinstance(spec.aux, Tensor):
        spec.aux = spec.aux.clone()


def weight_gradient(
    p: LossInputs, s: LossResult, mean: bool, upstream: Tensor, dtype: torch.dtype | None
) -> Tensor:
    """Return the (N,) gradient of the row weights; ``p`` gives the rows that count.

    ``upstream`` is 0-d, or (N,) without ``mean``.
    """
    rows = s.stats[Stat.LOSS]
    if mean:
        count = torch.as_tensor(s.normaliser, dtype=rows.dtype, device=rows.device)
        rows = torch.where(p.counted() & (count > 0), (rows - s.loss) / count, 0.0)
    return (rows * upstream).to(dtype)
