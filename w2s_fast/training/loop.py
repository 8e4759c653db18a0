"""The training loop."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World, get_world
from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss, LossContext
from w2s_fast.losses._base import IGNORE
from w2s_fast.models.weights import module_tensors, shape_of
from w2s_fast.training import checkpoint
from w2s_fast.training.completion_pairs import CompletionPairs, check_pair_labels
from w2s_fast.training.completions import CompletionBatch, Completions
from w2s_fast.training.config import EXECUTION_FIELDS, TrainConfig
from w2s_fast.training.data import (
    RowData,
    RowOrder,
    check_features,
    check_gold_classes,
    check_stages,
    check_weak_labels,
    derived_seed,
)
from w2s_fast.training.deepspeed.engine import DeepSpeedEngine
from w2s_fast.training.engine import Engine, PlainEngine
from w2s_fast.training.mixup import draw_shares, mix_rows, soft_targets
from w2s_fast.training.monitor import Monitor, Watch
from w2s_fast.training.step import MicroBatch, Stepper, StepResult
from w2s_fast.training.step_record import StepRecord, step_series
from w2s_fast.training.thresholds import Thresholds
from w2s_fast.training.train_mode import training_mode
from w2s_fast.training.weight_average import WeightAverage

# Reading a loss waits for the device or for other processes; a single CPU process has no such wait.
_READ_EVERY_STEPS = 20

ProgressFn = Callable[[int, int, float], None]  # (steps done, steps, loss of the last step)


def train(
    model: nn.Module,
    data: RowData,
    weak_labels: np.ndarray,
    loss: Loss,
    cfg: TrainConfig,
    seed: int,
    *,
    weight: np.ndarray | None = None,
    stages: np.ndarray | None = None,
    gold: np.ndarray | None = None,
    checkpoint_dir: Path | None = None,
    progress: ProgressFn | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, on the device it is on.

    The result is a function of the arguments: the global random state is neither used nor
    changed, and a training resumed from a checkpoint ends in the same weights, bit for bit, as one
    that was not interrupted. Under a launcher every process calls this with the same arguments;
    rows, and with ``cfg.zero_stage`` the model, are distributed, which changes rounding only.

    Args:
        model: ``forward(input_ids, attention_mask)`` returns logits (B, C).
        data: N rows, tokenized or cached, as the model takes them.
        weak_labels: (N,) integer hard labels (-100: row not used), or (N, C) soft labels. For
            ``CompletionPairs`` C is 2: the probabilities that the first and the second completion
            are the better one.
        loss: the loss to minimise; for pairs from ``make_pair_loss``.
        cfg: hyper-parameters.
        seed: of data order and dropout. The same seed gives every loss the same batches.
        weight: (N,) row weights, or None.
        stages: (N,) integers, or None: all epochs of a stage precede those of the next larger one,
            as in a curriculum from easy to hard rows; see `difficulty_stages`.
        gold: (N,) true classes for a loss that simulates an objective against them
            (``ExplicitConflict``), -100 where there is none.
        checkpoint_dir: folder of the checkpoints, written every ``cfg.checkpoint_every`` steps; an
            interrupted training resumes from the newest. The last one is left for the caller.
        progress: called on rank 0 with (steps done, steps, loss of the last step).
        on_step: called on rank 0 with the record of every step, in order. Steps before the
            checkpoint that a training resumes from are not repeated.
        watch: rows to predict during training, and whether the best or the last weights are kept.

    Returns:
        ``steps``, ``seconds`` (over all interrupted parts), and per step the fields of
        ``StepRecord``: ``losses``, ``agreement``, ``threshold``, ``coefficient``, ``grad_norm``,
        ``lr`` and ``tokens``, None where undefined and empty where no step defines it. With a watch
        of M rows and K evaluations also ``watched`` (their steps), ``scores`` (or None), ``best``
        (the step of the highest score, or None) and ``trajectory`` (K, M, C) float32.

    Raises:
        W2SError: for weak labels that do not fit or are not finite, stages that do not fit, a loss
            that is not finite (the message names the step), or a checkpoint of another training.
    """
    n_tokens = len(data.labels) if isinstance(data, Completions) else None
    n_classes = getattr(data, "n_classes", getattr(model, "n_classes", None))
    if getattr(loss, "of_features", False):
        check_features(weak_labels, len(data), n_classes)
    else:
        check_weak_labels(weak_labels, weight, len(data), n_classes, n_tokens)
    check_gold_classes(gold, len(data), n_classes)
    if isinstance(data, CompletionPairs):
        check_pair_labels(data, weak_labels, loss)
    if stages is not None:
        check_stages(stages, len(data))
    run = _Training(model, data, weak_labels, loss, cfg, seed, weight, stages, gold)
    if watch is not None:
        run.monitor = Monitor(watch, model, loss, cfg, len(data), run.world, checkpoint_dir)
    rank = run.world.rank
    with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(derived_seed(seed, 0, rank) if rank else seed)
        with training_mode(model, cfg):
            return run.loop(checkpoint_dir, progress, on_step)


class _Training:
    """State of one call of ``train``."""

    def __init__(
        self,
        model: nn.Module,
        data: RowData,
        weak_labels: np.ndarray,
        loss: Loss,
        cfg: TrainConfig,
        seed: int,
        weight: np.ndarray | None,
        stages: np.ndarray | None,
        gold: np.ndarray | None,
    ) -> None:
        self.data, self.loss, self.cfg, self.stages = data, loss, cfg, stages
        self.device = next(model.parameters()).device
        hard = weak_labels.ndim == 1
        self.weak_labels = torch.from_numpy(weak_labels.astype(np.int64 if hard else np.float32))
        self.weight = None if weight is None else torch.from_numpy(weight.astype(np.float32))
        self.gold = None if gold is None else torch.from_numpy(gold.astype(np.int64))
        if cfg.mixup:
            check_mixed(data, gold)
        self.steps = cfg.steps(len(data))
        self.order = RowOrder(len(data), cfg.batch_size, cfg.epochs, seed, stages)
        self.world = get_world()
        self.shapes = [
            (n, list(shape_of(t)), t.requires_grad) for n, t in module_tensors(model).items()
        ]
        self.engine = make_engine(model, cfg, self.world)
        self.average = WeightAverage(self.engine, model, cfg, self.steps, self.world)
        n_classes = getattr(model, "n_classes", 2 if hard else weak_labels.shape[1])
        n_classes = getattr(data, "n_classes", n_classes)
        if cfg.mixup:
            self.weak_labels, self.weight = soft_targets(self.weak_labels, self.weight, n_classes)
        self.thresholds = Thresholds(cfg.threshold_scope, loss, n_classes, cfg.batch_size)
        self.stepper = Stepper(self.engine, loss, self.thresholds, self.world)
        if isinstance(data, Completions) and self.thresholds.mode in ("window", "ema"):
            raise W2SError(
                f"threshold_scope={cfg.threshold_scope!r} keeps a fixed number of rows, which "
                "completions do not have; use 'exact' or 'microbatch'"
            )
        state = loss.init_state()
        self.loss_state = None if state is None else state.to(self.device)
        self.log: list[StepRecord] = []
        self.unread: list[tuple[StepResult, StepRecord]] = []  # the record has host numbers only
        self.lengths = data.lengths
        self.monitor: Monitor | None = None
        self.told = 0  # records that ``tell`` has reported
        self.seed, self.seconds, self.start = seed, 0.0, 0.0

    def loop(
        self,
        directory: Path | None,
        progress: ProgressFn | None,
        on_step: Callable[[StepRecord], None] | None,
    ) -> dict[str, Any]:
        """Run all remaining steps."""
        identity = self.identity() if directory is not None else {}
        first_step = self.resume(directory, identity)
        single_cpu = self.world.size == 1 and self.device.type == "cpu"
        read_every = 1 if single_cpu else _READ_EVERY_STEPS
        self.start = time.perf_counter() - self.seconds
        for step in range(first_step, self.steps):
            self.step(step)
            done = step + 1
            save = self.cfg.checkpoint_every and done % self.cfg.checkpoint_every == 0
            evaluate = self.monitor is not None and self.monitor.due(done)
            if save or evaluate or done % read_every == 0 or done == self.steps:
                self.read_results(done)
                self.tell(progress, on_step)
            if done == self.steps:
                self.average.apply()
            if evaluate and self.monitor is not None:
                self.monitor.evaluate(done)
            if save and directory is not None and done < self.steps:
                self.seconds = time.perf_counter() - self.start
                self.save(directory, done, identity)
        return {
            "steps": self.steps,
            "seconds": time.perf_counter() - self.start,
            **step_series(self.log),
            **({} if self.monitor is None else self.monitor.finish()),
        }

    def step(self, step: int) -> None:
        """Take one optimizer step."""
        ctx = LossContext(step_frac=step / self.steps, step=step, state=self.loss_state)
        lr = self.cfg.lr_at(step, self.steps)
        result = self.stepper.step(self.micro_batches(step), ctx, lr)
        self.loss_state = result.state
        nan, tokens = float("nan"), int(self.lengths[self.order.rows(step)].sum())
        coefficient = self.loss.coefficient(ctx.step_frac, step)
        seconds = time.perf_counter() - self.start
        record = StepRecord(step + 1, nan, nan, nan, coefficient, nan, lr, tokens, seconds)
        self.unread.append((result, record))
        self.average.add(step + 1)

    def tell(
        self, progress: ProgressFn | None, on_step: Callable[[StepRecord], None] | None
    ) -> None:
        """Report the steps that were read since the last call, on rank 0."""
        if self.world.is_main_process and progress is not None:
            progress(self.log[-1].step, self.steps, self.log[-1].loss)
        if self.world.is_main_process and on_step is not None:
            for record in self.log[self.told :]:
                on_step(record)
        self.told = len(self.log)

    def save(self, directory: Path, done: int, identity: dict[str, Any]) -> None:
        """Write a checkpoint."""
        files = {} if self.monitor is None else self.monitor.before_checkpoint()
        checkpoint.save(directory, done, self.seconds, self.tensors(), identity, self.world, files)
        if self.monitor is not None:
            self.monitor.after_checkpoint()

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return this process's micro-batches; all processes have as many, of as many rows."""
        if self.cfg.mixup:
            return self.mixed_micro_batches(step)
        rows = self.order.rows(step)
        size = self.world.size
        weight = None if self.weight is None else self.weight[rows]
        if padding := -len(rows) % size:  # filled with a row of weight 0
            weight = torch.ones(len(rows)) if weight is None else weight
            weight = torch.cat([weight, torch.zeros(padding)])
            rows = np.concatenate([rows, np.repeat(rows[:1], padding)])
        rows_at_once = (self.cfg.micro_batch_size or len(rows) // size) * size
        micro_batches = []
        for start in range(0, len(rows), rows_at_once):
            part = slice(start, start + rows_at_once)
            part_weight = None if weight is None else weight[part]
            micro_batches.append(self.micro_batch(rows[part], part_weight))
        return micro_batches

    def mixed_micro_batches(self, step: int) -> list[MicroBatch]:
        """Return ``micro_batches`` whose rows are mixed in pairs."""
        rows, size = self.order.rows(step), self.world.size
        weight = None if self.weight is None else self.weight[rows]
        share = draw_shares(len(rows), self.cfg.mixup, self.seed, step)
        every = mix_rows(rows, self.weak_labels[rows], weight, share, size)
        at_once = (self.cfg.micro_batch_size or len(every.rows) // size) * size
        own = slice(self.world.rank, None, size)
        micro_batches = []
        for start in range(0, len(every.rows), at_once):
            part = every.take(slice(start, start + at_once))
            batch = self.data.batch(part.rows[own], self.device)
            weak, share = part.weak.to(self.device), part.share[own].to(self.device)
            weight = None if part.weight is None else part.weight.to(self.device)
            own_weight = None if weight is None else weight[own]
            micro_batches.append(
                MicroBatch(batch, weak[own], own_weight, weak, weight, None, share)
            )
        return micro_batches

    def micro_batch(self, rows: np.ndarray, weight: Tensor | None) -> MicroBatch:
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
        return MicroBatch(batch, weak[own], own_weight, weak, weight, gold)

    def read_results(self, done: int) -> None:
        """Copy the results of the unread steps to the host and check that the losses are finite."""
        parts = [torch.stack([*r[:5]]) for r, _ in self.unread]
        own = torch.stack(parts).double()
        sums = self.world.sum(own).cpu()
        for (_, record), row in zip(self.unread, sums.tolist(), strict=True):
            loss, agreed, rows, threshold, grad_norm = row
            self.log.append(
                record._replace(
                    loss=loss,
                    agreement=agreed / max(rows, 1.0),
                    threshold=threshold / self.world.size,
                    grad_norm=grad_norm / self.world.size,
                )
            )
        self.unread.clear()
        for offset, bad in enumerate((~sums[:, 0].isfinite()).tolist()):
            if bad:
                step = done - len(sums) + offset + 1
                raise W2SError(
                    f"the loss is {self.log[step - 1].loss} at step {step} of {self.steps}"
                    f"{self._on_ranks(own[offset, 0])}; use a smaller lr, a warm-up (warmup_frac) "
                    "or clip_norm=1"
                )

    def _on_ranks(self, own_loss: Tensor) -> str:
        """Return which processes have a loss that is not finite, "" if all have; a collective call.

        The gradients of one reach the weights of all: a later step does not tell them apart.
        """
        everyone = self.world.all_gather_object([bool(own_loss.isfinite()), self.world.name])
        bad = [name for finite, name in everyone if not finite]
        return f" in the rows of {', '.join(bad)}" if 0 < len(bad) < len(everyone) else ""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield everything that changes during training, whole, by name."""
        yield from self.engine.tensors()
        yield from self.average.tensors()
        yield from ((f"threshold.{k}", t) for k, t in self.thresholds.state.items())
        if self.loss_state is not None:
            yield "loss.state", self.loss_state
        yield "random.cpu", self.world.all_gather(torch.get_rng_state()[None])
        if self.device.type == "cuda":
            state = torch.cuda.get_rng_state(self.device)
            yield "random.cuda", self.world.all_gather(state[None])
        if self.monitor is not None:
            yield from self.monitor.tensors()
        rows = [record.row() for record in self.log]
        yield "log.steps", torch.tensor(rows, dtype=torch.float64)

    def resume(self, directory: Path | None, identity: dict[str, Any]) -> int:
        """Restore the newest checkpoint, if any, and return the step to continue with."""
        saved = checkpoint.load(directory, identity, self.world) if directory is not None else None
        if saved is None:
            return 0
        self.engine.load(saved.read)
        self.average.load(saved.read, saved.step)
        for name in saved.names("threshold."):
            if (t := saved.read(name)) is not None:
                self.thresholds.state[name.partition(".")[2]] = t.to(self.device)
        if (state := saved.read("loss.state")) is not None:
            self.loss_state = state.to(self.device)
        if self.monitor is not None:
            self.monitor.load(saved)
        self.restore_random(saved.read("random.cpu"), saved.read("random.cuda"), saved.step)
        log = saved.read("log.steps")
        rows = [] if log is None else log.tolist()
        self.log = [StepRecord.from_row(i, row) for i, row in enumerate(rows, 1)]
        self.told, self.seconds = len(self.log), saved.seconds
        return saved.step

    def restore_random(self, cpu: Tensor | None, cuda: Tensor | None, step: int) -> None:
        """Restore each process's random state; new ones if the number of processes changed."""
        if cpu is None or len(cpu) != self.world.size:
            torch.manual_seed(derived_seed(self.seed, step, self.world.rank))
            return
        torch.set_rng_state(cpu[self.world.rank].clone())
        if self.device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda[self.world.rank].clone(), self.device)

    def identity(self) -> dict[str, Any]:
        """Return what identifies this training in its checkpoints."""
        fields = dataclasses.asdict(self.cfg).items()
        recipe = {name: value for name, value in fields if name not in EXECUTION_FIELDS}
        labels_hash = hashlib.sha256(self.weak_labels.numpy().tobytes())
        labels_hash.update(b"" if self.weight is None else self.weight.numpy().tobytes())
        order = {} if self.stages is None else {"stages": _digest(self.stages)}
        labels_hash.update(b"" if self.gold is None else self.gold.numpy().tobytes())
        return {
            **recipe,
            **order,
            "seed": self.seed,
            "loss": repr(self.loss),
            "model": hashlib.sha256(repr(self.shapes).encode()).hexdigest(),
            "data": self.data.digest(),
            "targets": labels_hash.hexdigest(),
            "watch": None if self.monitor is None else self.monitor.identity,
        }


def check_mixed(data: RowData, gold: np.ndarray | None) -> None:
    """Raise ``W2SError`` unless mixup can mix these rows."""
    if isinstance(data, Completions | CompletionPairs):
        raise W2SError(
            f"mixup mixes rows with class probabilities, and the data are {type(data).__name__}, "
            "whose labels are texts; expected rows of classes: set mixup=0"
        )
    if gold is not None:
        raise W2SError(
            "mixup has no classes for a loss against true labels (gold); expected one of the two: "
            "set mixup=0"
        )


def _digest(stages: np.ndarray) -> str:
    return hashlib.sha256(stages.astype("<i8").tobytes()).hexdigest()


def make_engine(model: nn.Module, cfg: TrainConfig, world: World) -> Engine:
    """Return the engine for ``model``: plain torch, or DeepSpeed where ``cfg.zero_stage`` is not 0.

    Raises:
        W2SError: if the batch does not split over the processes, or fp16 weights lack loss scaling.
    """
    cfg.batch_shape(world.size)
    dtype = _lowest_dtype(model)
    if cfg.zero_stage:
        return DeepSpeedEngine(model, cfg, world, dtype)
    if dtype == "fp16":
        raise W2SError("fp16 weights need loss scaling; use zero_stage=1 or more, or dtype bf16")
    return PlainEngine(model, cfg, world)


def _lowest_dtype(model: nn.Module) -> str:
    dtypes = {p.dtype for p in model.parameters()}
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    return next((name for dtype, name in names.items() if dtype in dtypes), "fp32")
