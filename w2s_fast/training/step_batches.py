"""The micro-batches of every optimizer step: rows, weak labels, weights, and views of the rows."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from w2s_fast.distributed.world import World
from w2s_fast.losses._base import IGNORE
from w2s_fast.training.anchor import Anchor
from w2s_fast.training.completions import CompletionBatch, Completions
from w2s_fast.training.data import Batch, RowData, RowOrder
from w2s_fast.training.micro_batch import MicroBatch
from w2s_fast.training.mixup import MixedRows, draw_shares, mix_rows, soft_targets
from w2s_fast.training.views import strong_view


class StepBatches:
    """The micro-batches of one training on one process.

    Args:
        data, weak_labels, weight, gold: see ``train``.
        order: of the rows.
        micro_batch_size: rows of this process in a micro-batch; None: all of a step.
        device: of the model.
        world: this process.
        drop: share of the tokens or features that the student's view leaves out.
        seed: of these draws.
    """

    def __init__(
        self,
        data: RowData,
        weak_labels: np.ndarray,
        order: RowOrder,
        micro_batch_size: int | None,
        device: torch.device,
        world: World,
        *,
        weight: np.ndarray | None,
        gold: np.ndarray | None,
        drop: float,
        seed: int,
    ) -> None:
        self.data, self.order, self.micro_batch_size = data, order, micro_batch_size
        self.device, self.world, self.drop, self.seed = device, world, drop, seed
        self.anchor: Anchor | None = None
        self.mixup = 0.0
        integer = weak_labels.ndim == 1
        self.weak_labels = torch.from_numpy(weak_labels.astype(np.int64 if integer else np.float32))
        self.weight = None if weight is None else torch.from_numpy(weight.astype(np.float32))
        self.gold = None if gold is None else torch.from_numpy(gold.astype(np.int64))

    def mix(self, alpha: float, n_classes: int) -> None:
        """Mix the rows of every step in pairs, see ``mixup``."""
        self.mixup = alpha
        self.weak_labels, self.weight = soft_targets(self.weak_labels, self.weight, n_classes)

    def digest(self) -> str:
        """Return a hash of labels, weights and true classes."""
        h = hashlib.sha256(self.weak_labels.numpy().tobytes())
        h.update(b"" if self.weight is None else self.weight.numpy().tobytes())
        h.update(b"" if self.gold is None else self.gold.numpy().tobytes())
        return h.hexdigest()

    def of_step(self, step: int) -> list[MicroBatch]:
        """Return this process's micro-batches; all processes have as many, of as many rows."""
        if self.mixup:
            return self._mixed(step)
        rows = self.order.rows(step)
        size = self.world.size
        weight = None if self.weight is None else self.weight[rows]
        if padding := -len(rows) % size:  # filled with a row of weight 0
            weight = torch.ones(len(rows)) if weight is None else weight
            weight = torch.cat([weight, torch.zeros(padding)])
            rows = np.concatenate([rows, np.repeat(rows[:1], padding)])
        rows_at_once = (self.micro_batch_size or len(rows) // size) * size
        micro_batches = []
        for start in range(0, len(rows), rows_at_once):
            part = slice(start, start + rows_at_once)
            part_weight = None if weight is None else weight[part]
            micro_batch = self._micro_batch(rows[part], part_weight)
            micro_batches.append(self._with_view(micro_batch, step, start))
        return micro_batches

    def _mixed(self, step: int) -> list[MicroBatch]:
        """Return ``of_step`` with rows that are mixed in pairs."""
        rows, size = self.order.rows(step), self.world.size
        weight = None if self.weight is None else self.weight[rows]
        share = draw_shares(len(rows), self.mixup, self.seed, step)
        every = mix_rows(rows, self.weak_labels[rows], weight, share, size)
        rows_at_once = (self.micro_batch_size or len(every.rows) // size) * size
        starts = range(0, len(every.rows), rows_at_once)
        return [self._mixture(every.take(slice(s, s + rows_at_once))) for s in starts]

    def _mixture(self, part: MixedRows) -> MicroBatch:
        own = slice(self.world.rank, None, self.world.size)
        weak, share = part.weak.to(self.device), part.share[own].to(self.device)
        weight = None if part.weight is None else part.weight.to(self.device)
        return MicroBatch(
            self.data.batch(part.rows[own], self.device),
            weak[own],
            None if weight is None else weight[own],
            weak,
            weight,
            initial=self._initial(part.rows[own]),
            share=share,
        )

    def _initial(self, rows: np.ndarray) -> Tensor | None:
        return None if self.anchor is None else self.anchor.rows(rows, self.device)

    def _with_view(self, m: MicroBatch, step: int, start: int) -> MicroBatch:
        """Return a micro-batch, from place ``start`` of the step, with what the student sees."""
        if not self.drop or not isinstance(m.batch, Batch):
            return m
        places = range(start + self.world.rank, start + len(m.all_weak), self.world.size)
        batch = strong_view(m.batch, places, self.drop, self.seed, step)
        return m._replace(batch=batch, weak_view=m.batch)

    def _micro_batch(self, rows: np.ndarray, weight: Tensor | None) -> MicroBatch:
        """Make a micro-batch from the rows of all processes and their weights."""
        own = slice(self.world.rank, None, self.world.size)
        index, batch = rows, self.data.batch(rows[own], self.device)
        if isinstance(self.data, Completions):
            index, owner = self.data.label_index(rows, self.world.size)
            weight = None if weight is None else weight[owner]
        weak = self.weak_labels[index]
        if isinstance(batch, CompletionBatch):
            weak[torch.from_numpy(index < 0)] = IGNORE
            batch = batch.padded(len(weak[own]))
        weak = weak.to(self.device)
        weight = None if weight is None else weight.to(self.device)
        own_weight = None if weight is None else weight[own]
        gold = None if self.gold is None else self.gold[rows[own]].to(self.device)
        initial = self._initial(rows[own])
        return MicroBatch(batch, weak[own], own_weight, weak, weight, gold, initial=initial)
