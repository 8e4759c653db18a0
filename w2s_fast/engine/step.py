"""One optimizer step: micro-batches, exact threshold, one normaliser.

    1. normaliser of all rows of the step, from the targets alone
    2. ``exact`` threshold with several micro-batches: forward all of them without gradients
    3. per micro-batch: forward, loss sum / normaliser, backward; its graph is freed
    4. clip and update

What moves the weights is behind ``Engine``; a sharded engine replaces that and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from w2s_fast.engine.config import TrainConfig
from w2s_fast.engine.data import Batch
from w2s_fast.engine.optim import MasterAdamW
from w2s_fast.engine.thresholds import Thresholds
from w2s_fast.losses import Loss


class Micro(NamedTuple):
    """Rows of one forward and backward."""

    batch: Batch
    weak: Tensor
    weight: Tensor | None


class Progress(NamedTuple):
    """Where a step stands: ``step`` from 0, of ``steps``."""

    step: int
    steps: int

    @property
    def frac(self) -> float:
        """step / steps, what schedules take."""
        return self.step / self.steps


class Engine(Protocol):
    """Moves weights. ``backward`` adds to the gradient, ``update`` uses it up."""

    def logits(self, batch: Batch) -> Tensor:
        """(B, C) logits of a micro-batch."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this 0-d loss, already divided by the step's normaliser."""

    def update(self, lr: float) -> None:
        """Clip and take one optimizer step; the gradient is zero afterwards."""

    def tensors(self) -> dict[str, Tensor]:
        """Optimizer state by name."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` gave."""


class PlainEngine:
    """Plain torch on one device."""

    def __init__(self, model: nn.Module, cfg: TrainConfig) -> None:
        self._model, self._optimizer = model, MasterAdamW(model, cfg)

    def logits(self, batch: Batch) -> Tensor:
        """See ``Engine``."""
        return forward(self._model, batch)

    def backward(self, loss: Tensor) -> None:
        """See ``Engine``."""
        loss.backward()
        self._optimizer.accumulate()

    def update(self, lr: float) -> None:
        """See ``Engine``."""
        self._optimizer.step(lr)

    def tensors(self) -> dict[str, Tensor]:
        """See ``Engine``."""
        return self._optimizer.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """See ``Engine``."""
        self._optimizer.load(tensors)


class StepResult(NamedTuple):
    """Detached 0-d results of one optimizer step, and the loss's state after it."""

    loss: Tensor  # mean over the step, by its normaliser
    agreement: Tensor  # fraction of rows on which student and weak label name the same class
    state: Tensor | None


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """Logits; segment ids are passed only where there are any."""
    if batch.token_type_ids is None:
        return model(batch.input_ids, batch.attention_mask)
    return model(batch.input_ids, batch.attention_mask, batch.token_type_ids)


def run_step(
    engine: Engine,
    loss: Loss,
    micro: Sequence[Micro],
    thresholds: Thresholds,
    state: Tensor | None,
    at: Progress,
    lr: float,
) -> StepResult:
    """Take one optimizer step over ``micro``; see the module for the order of things."""
    parts = [loss.count(m.weak, m.weight) for m in micro]
    total = torch.stack(parts).sum()
    normaliser = torch.where(total > 0, total, 1.0)
    known = None
    if thresholds.mode == "exact" and len(micro) > 1:
        known = _probe(engine, loss, micro, state)
    sums: list[Tensor] = []
    for m in micro:
        logits = engine.logits(m.batch)
        t = known if known is not None else thresholds.rolling(logits, m.weak, m.weight)
        out = loss(
            logits, m.weak, weight=m.weight, frac=at.frac, step=at.step, threshold=t, state=state
        )
        state = out.state
        engine.backward(out.loss_sum / normaliser)
        zero = torch.zeros_like(total)
        agreed, rows = out.metrics.get("agreement", zero), out.metrics.get("rows", zero)
        sums.append(torch.stack([out.loss_sum.detach(), agreed, rows]))
        del logits, out  # the graph goes before the next forward
    engine.update(lr)
    loss_sum, agreed, rows = torch.stack(sums).sum(0)
    return StepResult(loss_sum / normaliser, agreed / rows.clamp_min(1), state)


@torch.no_grad()
def _probe(
    engine: Engine, loss: Loss, micro: Sequence[Micro], state: Tensor | None
) -> Tensor | None:
    """Exact threshold over the whole step. Dropout, if on, replays in the pass that follows."""
    device = micro[0].batch.input_ids.device
    rng = _random_state(device)
    logits = torch.cat([engine.logits(m.batch) for m in micro])
    _restore_random_state(device, rng)
    weak = torch.cat([m.weak for m in micro])
    weights = [m.weight for m in micro if m.weight is not None]
    return loss.threshold(logits, weak, weight=torch.cat(weights) if weights else None, state=state)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
