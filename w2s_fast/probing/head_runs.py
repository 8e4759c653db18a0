"""What heads are trained on: the runs of a call, and their labels in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from w2s_fast.losses import Loss
from w2s_fast.training.step_targets import StepTargets

Rows = tuple[Tensor, Tensor | None]  # labels and weights of a batch


@dataclass(frozen=True, eq=False)
class HeadRun:
    """One head to train.

    Attributes:
        targets: (N,) integer hard labels (-100: row not used), or (N, C) soft labels.
        loss: the loss to minimise.
        lr: peak learning rate; None: that of the training configuration.
        weight: (N,) row weights, or None.
        step_targets: see ``train``. ``CoTeaching`` trains two heads, of which the first is the
            result. The contrastive term of ``SelfTargets`` is for features that are trained.
    """

    targets: np.ndarray
    loss: Loss
    lr: float | None = None
    weight: np.ndarray | None = None
    step_targets: StepTargets | None = None


class RunLabels:
    """Weak labels and weights of all runs; arrays that runs share are gathered once a step."""

    def __init__(self, runs: Sequence[HeadRun], device: torch.device) -> None:
        self._keys = [(id(r.targets), None if r.weight is None else id(r.weight)) for r in runs]
        self._tensors: dict[int, Tensor] = {}
        for run in runs:
            for array in (run.targets, run.weight):
                if array is not None and id(array) not in self._tensors:
                    hard = np.issubdtype(array.dtype, np.integer) and array is run.targets
                    t = torch.from_numpy(array.astype(np.int64 if hard else np.float32))
                    self._tensors[id(array)] = t.to(device)

    def rows(self, rows: Tensor) -> list[Rows]:
        """Return targets and weights of the given rows, run by run."""
        part = {key: t[rows] for key, t in self._tensors.items()}
        return [(part[t], None if w is None else part[w]) for t, w in self._keys]
