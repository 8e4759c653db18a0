"""The first pass of a step with ``StepTargets``: predict its rows, and make their targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError
from w2s_fast.losses import LossContext
from w2s_fast.training.co_teaching import students_of
from w2s_fast.training.completion_pairs import CompletionPairs
from w2s_fast.training.completions import Completions
from w2s_fast.training.contrast import Pairs, confident_pairs
from w2s_fast.training.data import RowData
from w2s_fast.training.engine import Engine
from w2s_fast.training.head_input import HeadInput
from w2s_fast.training.micro_batch import MicroBatch
from w2s_fast.training.self_targets import SelfTargets
from w2s_fast.training.step_targets import StepTargets, soft_rows
from w2s_fast.training.teacher import Teacher
from w2s_fast.training.train_mode import eval_mode, replayed_random


class FirstPass:
    """Makes the targets of the steps of one training.

    Args:
        targets: what is made of the predictions.
        engine, model, world: of the training.
        n_classes: C.
        teacher: whose predictions they are; None: the model's.
        head_input: of the model, for the contrastive term; None without one.
    """

    def __init__(
        self,
        targets: StepTargets,
        engine: Engine,
        model: nn.Module,
        world: World,
        n_classes: int,
        teacher: Teacher | None = None,
        head_input: HeadInput | None = None,
    ) -> None:
        self._targets, self._engine, self._model = targets, engine, model
        self._world, self._n_classes, self._teacher = world, n_classes, teacher
        self._head_input = head_input

    @torch.no_grad()
    def rewritten(
        self, micro_batches: Sequence[MicroBatch], ctx: LossContext, normaliser: Tensor
    ) -> list[MicroBatch]:
        """Return the micro-batches with soft targets and weights of this step; collective.

        Predictions are without dropout, and use no random numbers.

        Args:
            micro_batches: of the step.
            ctx: of the step.
            normaliser: 0-d divisor of the sum of its row losses.
        """
        soft = [soft_rows(m.all_weak, m.all_weight, self._n_classes) for m in micro_batches]
        if not self._targets.active(ctx.step_frac):
            return self._with_rows(micro_batches, soft)
        weak, weight = (torch.cat(parts) for parts in zip(*soft, strict=True))
        logits = self._logits(micro_batches)
        new_weak, new_weight = self._targets.rows(logits, weak, weight, ctx.step_frac)
        sizes = [len(m.all_weak) for m in micro_batches]
        out = self._with_rows(
            micro_batches, list(zip(new_weak.split(sizes), new_weight.split(sizes), strict=True))
        )
        if isinstance(self._targets, SelfTargets) and self._targets.contrast:
            classes, used = self._targets.confident(logits, weight)
            scale = self._targets.contrast * normaliser / confident_pairs(used)
            return self._with_pairs(out, classes, used, scale)
        return out

    def head_rows(self, n: int) -> Tensor:
        """Return the head's input (n, D) in the last forward, of all candidates of an example."""
        assert self._head_input is not None and self._head_input.last is not None
        return self._head_input.last.reshape(n, -1)

    def _with_pairs(
        self, micro_batches: Sequence[MicroBatch], classes: Tensor, used: Tensor, scale: Tensor
    ) -> list[MicroBatch]:
        """Return the micro-batches with the rows of the step that theirs are compared with."""
        parts = []
        with replayed_random(micro_batches[0].weak.device):  # the training pass repeats dropout
            for m in micro_batches:
                self._engine.logits(m.batch)
                parts.append(self._world.all_gather(self.head_rows(len(m.weak)).detach()))
        features = torch.cat(parts)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        own = slice(self._world.rank, None, self._world.size)
        margin = getattr(self._targets, "margin", 1.0)
        sizes = [len(m.all_weak) for m in micro_batches]
        return [
            m._replace(pairs=Pairs(features, classes, used, c[own], u[own], margin, scale))
            for m, c, u in zip(micro_batches, classes.split(sizes), used.split(sizes), strict=True)
        ]

    def _logits(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Return the logits of the rows of all processes, in the order of the step."""
        batches = [m.batch if m.weak_view is None else m.weak_view for m in micro_batches]
        if self._teacher is None:
            return torch.cat([self._predict(batch) for batch in batches])
        with self._teacher.in_place():
            return torch.cat([self._predict(batch) for batch in batches])

    def _predict(self, batch: object) -> Tensor:
        with eval_mode(self._model):
            return self._world.all_gather(self._engine.logits(batch).detach())  # type: ignore[arg-type]

    def _with_rows(
        self, micro_batches: Sequence[MicroBatch], rows: Sequence[tuple[Tensor, Tensor]]
    ) -> list[MicroBatch]:
        own = slice(self._world.rank, None, self._world.size)
        return [
            m._replace(weak=t[own], weight=w[own], all_weak=t, all_weight=w)
            for m, (t, w) in zip(micro_batches, rows, strict=True)
        ]


def check_step_targets(targets: StepTargets | None, model: nn.Module, data: RowData) -> None:
    """Check that a training can make its targets.

    Raises:
        W2SError: the rows have no classes, or the model has not one branch for each student.
    """
    if targets is None:
        if len(students_of(model)) > 1:
            raise W2SError("the model is Twins without step_targets; expected CoTeaching(...)")
        return
    if isinstance(data, Completions | CompletionPairs):
        raise W2SError(
            f"step_targets are {targets}, which need class probabilities of every row, and the "
            f"data are {type(data).__name__}; leave step_targets out"
        )
    branches = len(students_of(model))
    if branches != targets.branches:
        expected = "Twins(first, second)" if targets.branches == 2 else "one student"
        raise W2SError(
            f"step_targets are {targets}, and the model is {type(model).__name__}; expected "
            f"{expected}"
        )
