"""The log of a training: results of steps are copied to the host together, checked and reported."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError
from w2s_fast.training.engine import Engine
from w2s_fast.training.step import StepResult
from w2s_fast.training.step_record import StepRecord

ProgressFn = Callable[[int, int, float], None]  # (steps done, steps, loss of the last step)


class StepLog:
    """Records of the steps that were read, and results on the device of those that were not.

    Attributes:
        records: of the steps that were read, in order, over the rows of all processes.
    """

    def __init__(self, steps: int, engine: Engine, world: World) -> None:
        self.records: list[StepRecord] = []
        self._steps, self._engine, self._world = steps, engine, world
        self._unread: list[tuple[StepResult, StepRecord]] = []  # the record has host numbers only
        self._told = 0  # records that ``tell`` has reported

    def add(self, result: StepResult, record: StepRecord) -> None:
        """Keep the result of a step; what it computed is NaN in its record until it is read."""
        self._unread.append((result, record))

    def read(self) -> None:
        """Copy the results of the unread steps to the host; a collective call.

        Raises:
            W2SError: for the first step whose loss or gradient is not finite.
        """
        own = torch.stack([torch.stack([*r[:5]]) for r, _ in self._unread]).double()
        sums = self._world.sum(own).cpu()
        for (_, record), row in zip(self._unread, sums.tolist(), strict=True):
            loss, agreed, rows, threshold, grad_norm = row
            self.records.append(
                record._replace(
                    loss=loss,
                    agreement=agreed / max(rows, 1.0),
                    threshold=threshold / self._world.size,
                    grad_norm=grad_norm / self._world.size,
                )
            )
        self._unread.clear()
        for offset, record in enumerate(self.records[-len(sums) :]):
            self._check_finite(record, own[offset, 0])

    def tell(
        self, progress: ProgressFn | None, on_step: Callable[[StepRecord], None] | None
    ) -> None:
        """Report the steps that were read since the last call, on rank 0."""
        if self._world.is_main_process and progress is not None:
            progress(self.records[-1].step, self._steps, self.records[-1].loss)
        if self._world.is_main_process and on_step is not None:
            for record in self.records[self._told :]:
                on_step(record)
        self._told = len(self.records)

    def tensor(self) -> Tensor:
        """Return the records as a checkpoint stores them, fp64 (steps, numbers)."""
        return torch.tensor([record.row() for record in self.records], dtype=torch.float64)

    def load(self, saved: Tensor | None) -> None:
        """Continue after the records of a checkpoint; ``tell`` does not repeat them."""
        rows = [] if saved is None else saved.tolist()
        self.records = [StepRecord.from_row(i, row) for i, row in enumerate(rows, 1)]
        self._told = len(self.records)

    def _check_finite(self, record: StepRecord, own_loss: Tensor) -> None:
        """Raise `W2SError` if a step's loss or gradient is not finite; a collective call."""
        if math.isfinite(record.loss):
            if math.isinf(record.grad_norm) and not self._engine.skips_overflow:
                raise W2SError(
                    f"the loss is {record.loss:.3g} at step {record.step} of {self._steps}, but "
                    "its gradient is not finite; use a smaller lr, a warm-up (warmup_frac) or a "
                    "dtype of larger range"
                )
            return
        raise W2SError(
            f"the loss is {record.loss} at step {record.step} of {self._steps}"
            f"{self._on_ranks(own_loss)}; use a smaller lr, a warm-up (warmup_frac) or clip_norm=1"
        )

    def _on_ranks(self, own_loss: Tensor) -> str:
        """Return which processes have a loss that is not finite, "" if all have; a collective call.

        The gradients of one reach the weights of all: a later step does not tell them apart.
        """
        everyone = self._world.all_gather_object([bool(own_loss.isfinite()), self._world.name])
        bad = [name for finite, name in everyone if not finite]
        return f" in the rows of {', '.join(bad)}" if 0 < len(bad) < len(everyone) else ""
