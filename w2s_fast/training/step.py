"""One optimizer step over micro-batches, with an exact batch threshold and one normaliser.

    1. normaliser of all rows of the step, on every process, from the weak labels alone
       ``StepTargets``: targets and weights of these rows, from a pass over all of them
    2. ``exact`` threshold with several micro-batches: forward all of them without gradients
    3. per micro-batch: forward, loss sum / normaliser, backward; its graph is freed
    4. clip and update

Each process holds different rows of every micro-batch and knows the weak labels of all rows, so a
batch statistic costs one all-gather of logits and nothing else is exchanged before the update.
An ``Engine`` updates the weights, in plain torch or in DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.losses import Loss, LossContext, LossOut
from w2s_fast.models.weights import gathered
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.training.anchor import Anchor
from w2s_fast.training.engine import Engine
from w2s_fast.training.first_pass import FirstPass
from w2s_fast.training.micro_batch import MicroBatch
from w2s_fast.training.mixup import mixed
from w2s_fast.training.thresholds import Thresholds
from w2s_fast.training.train_mode import replayed_random


class StepResult(NamedTuple):
    """Detached 0-d results of one optimizer step, and the loss's state after it.

    The first three numbers are sums over the rows of this process; add them up over all processes.
    """

    loss: Tensor  # share in the mean over the step, by its normaliser
    agreement: Tensor  # rows on which student and weak label name the same class
    rows: Tensor  # rows that count
    threshold: Tensor  # mean over the micro-batches of this process; NaN without
    grad_norm: Tensor  # of the whole step, the same on every process
    state: Tensor | None


class Stepper:
    """Takes the optimizer steps of one training; see the module for the order of operations."""

    def __init__(
        self,
        engine: Engine,
        loss: Loss,
        thresholds: Thresholds,
        world: World = SINGLE_PROCESS,
        first_pass: FirstPass | None = None,
    ) -> None:
        self.engine, self.loss, self.thresholds, self.world = engine, loss, thresholds, world
        self.first_pass = first_pass
        self.anchor: Anchor | None = None

    def step(self, micro_batches: Sequence[MicroBatch], ctx: LossContext, lr: float) -> StepResult:
        """Take one optimizer step over ``micro_batches``.

        Args:
            micro_batches: of this step.
            ctx: ``step``, ``step_frac`` and ``state`` of this step; the rest is filled in here.
            lr: learning rate of this step.
        """
        counts = [self.loss.count(m.all_weak, m.all_weight) for m in micro_batches]
        total = torch.stack(counts).sum()
        normaliser = torch.where(total > 0, total, 1.0)
        if self.first_pass is not None:
            micro_batches = self.first_pass.rewritten(micro_batches, ctx, normaliser)
        if self.thresholds.mode == "exact" and len(micro_batches) > 1:
            ctx = ctx._replace(threshold=self._exact_threshold(micro_batches, ctx))
        sums: list[Tensor] = []
        for i, m in enumerate(micro_batches):
            loss_sum, out = self._evaluate(m, ctx)
            if self.anchor is not None and m.initial is not None:
                loss_sum = loss_sum + self.anchor.penalty(m.initial, m.weak, m.weight)
            metrics, ctx = out.metrics, ctx._replace(state=out.state)
            self.engine.backward(loss_sum / normaliser, i == len(micro_batches) - 1)
            zero = torch.zeros_like(total)
            agreement, rows = metrics.get("agreement", zero), metrics.get("rows", zero)
            sums.append(torch.stack([loss_sum.detach(), agreement, rows, _threshold(out)]))
            del loss_sum, out  # frees the graph before the next forward
        grad_norm = self.engine.update(lr).to(total)
        loss_sum, agreement, rows, at = torch.stack(sums).sum(0)
        return StepResult(
            loss_sum / normaliser, agreement, rows, at / len(sums), grad_norm, ctx.state
        )

    def _evaluate(self, m: MicroBatch, ctx: LossContext) -> tuple[Tensor, LossOut]:
        """Return loss sum of a micro-batch with its graph, and what the loss returned of its rows.

        The state is the one after the rows of all processes.
        """
        results: list[tuple[LossOut, Tensor | None]] = []

        def logits_fn(logits: Any) -> Tensor:
            logits = _mixed(logits, m)
            threshold, new_state = ctx.threshold, None
            if threshold is None or (ctx.state is not None and self.world.size > 1):
                threshold, new_state = self._batch_statistic(logits, m, ctx)
            row_ctx = ctx._replace(weight=m.weight, threshold=threshold, gold=m.gold)
            out = self.loss(logits, m.weak, **row_ctx._asdict())
            results.append((out, new_state))
            return out.loss_sum + self._contrast(m)

        loss_sum = self.engine.loss(m.batch, logits_fn)
        out, new_state = results[0]
        out = out._replace(loss_sum=loss_sum.detach())  # the graph is held by ``loss_sum`` alone
        return loss_sum, out if new_state is None else out._replace(state=new_state)

    def _contrast(self, m: MicroBatch) -> Tensor | float:
        """Return the contrastive term of the rows whose forward has just ended."""
        if m.pairs is None or self.first_pass is None:
            return 0.0
        own = self.first_pass.head_rows(len(m.weak))
        return m.pairs.loss(own) if own.requires_grad else 0.0

    def _batch_statistic(
        self, logits: Any, m: MicroBatch, ctx: LossContext
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the threshold of this micro-batch, and the loss's state after the rows of all.

        (None, None) if the loss may compute both from its own rows.
        """
        mode, state = self.thresholds.mode, ctx.state
        if self.world.size == 1:
            return self.thresholds.rolling(logits, m.weak, m.weight), None
        if state is None and mode in ("none", "microbatch"):
            return None, None
        z, weak, weight = _all_gather(logits.detach(), self.world), m.all_weak, m.all_weight
        threshold = ctx.threshold
        if threshold is None and mode == "exact":
            threshold = self.loss.threshold(z, weak, weight=weight, state=state)
        elif threshold is None:
            threshold = self.thresholds.rolling(z, weak, weight)
        return threshold, self.loss.advance(z, weak, weight=weight, state=state)

    @torch.no_grad()
    def _exact_threshold(
        self, micro_batches: Sequence[MicroBatch], ctx: LossContext
    ) -> Tensor | None:
        """Return the threshold over the whole step; the training pass then replays any dropout."""
        device = micro_batches[0].batch.input_ids.device
        with replayed_random(device):
            own = [_mixed(self.engine.logits(m.batch), m) for m in micro_batches]
            parts = [_all_gather(logits, self.world) for logits in own]
        logits = _concatenate(parts)
        weak = torch.cat([m.all_weak for m in micro_batches])
        weights = [m.all_weight for m in micro_batches if m.all_weight is not None]
        weight = torch.cat(weights) if weights else None
        with gathered([logits.weight] if isinstance(logits, Projected) else []):
            return self.loss.threshold(logits, weak, weight=weight, state=ctx.state)


def _threshold(out: LossOut) -> Tensor:
    """Return the 0-d threshold of a micro-batch; NaN without one, or with one for each class."""
    if out.threshold is None or out.threshold.dim():
        return out.loss_sum.new_full((), float("nan"))
    return out.threshold.to(out.loss_sum)


def _mixed(logits: Any, m: MicroBatch) -> Any:
    """Return the logits of a micro-batch; where rows are mixed, those of the mixtures."""
    return logits if m.share is None else mixed(logits, m.share)


def _all_gather(logits: Any, world: World) -> Any:
    """Return the logits of all processes' rows."""
    if isinstance(logits, Projected):
        return replace(logits, hidden=world.all_gather(logits.hidden))
    return world.all_gather(logits)


def _concatenate(parts: list[Any]) -> Any:
    """Concatenate the logits of micro-batches."""
    if isinstance(parts[0], Projected):
        return replace(parts[0], hidden=torch.cat([p.hidden for p in parts]))
    return torch.cat(parts)
