"""What a training records of every optimizer step; curves, trackers and checkpoints read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class StepRecord(NamedTuple):
    """Numbers of one optimizer step, over the rows of all processes; NaN where one is undefined.

    Attributes:
        step: optimizer steps done, this one included; the first step is 1.
        loss: mean over the step, by its normaliser.
        agreement: fraction of rows where student and weak label name the same class.
        threshold: batch threshold that the loss hardened with: P(class 0) for two classes, else a
            top probability. The mean over micro-batches and processes where each has its own; NaN
            for a loss without one.
        coefficient: self-target coefficient of the loss, after its warm-up schedule.
        grad_norm: L2 norm of the gradient before clipping.
        lr: learning rate.
        tokens: tokens of the step's rows, after truncation.
        seconds: wall time of the training at the end of the step, over all interrupted parts.
    """

    step: int
    loss: float
    agreement: float
    threshold: float
    coefficient: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float

    def row(self) -> list[float]:
        """Return the numbers as a checkpoint stores them, without ``step``."""
        return [float(value) for value in self[1:]]

    @classmethod
    def from_row(cls, step: int, row: Sequence[float]) -> StepRecord:
        """Return the record that ``row`` packed.

        Args:
            step: optimizer steps done.
            row: the numbers in order; those that an earlier version did not store are missing at
                the end, and undefined.
        """
        fields = len(cls._fields) - 1
        record = cls._make([step, *row, *[math.nan] * (fields - len(row))])
        return record._replace(tokens=0 if math.isnan(record.tokens) else int(record.tokens))


# Series of ``train``'s result and of log.json, by field. Seconds are not among them: the log is
# content that later stages depend on, so equal trainings write equal logs.
_SERIES = {
    "loss": "losses",
    "agreement": "agreement",
    "threshold": "threshold",
    "coefficient": "coefficient",
    "grad_norm": "grad_norm",
    "lr": "lr",
    "tokens": "tokens",
}


def step_series(records: Sequence[StepRecord]) -> dict[str, list[Any]]:
    """Return one list per quantity, in order of the steps; None where it is not finite.

    A quantity that no step defines has an empty list.
    """
    series: dict[str, list[Any]] = {}
    for field, name in _SERIES.items():
        values = [getattr(record, field) for record in records]
        numbers = [value if math.isfinite(value) else None for value in values]
        series[name] = [] if all(value is None for value in numbers) else numbers
    return series
