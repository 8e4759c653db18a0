"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World, get_world
from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss, LossContext
from w2s_fast.models.weights import module_tensors, sample_weights, shape_of
from w2s_fast.training import checkpoint
from w2s_fast.training.anchor import Anchor
from w2s_fast.training.co_teaching import TwinLoss, Twins, paired, students_of
from w2s_fast.training.completion_pairs import CompletionPairs, check_pair_labels
from w2s_fast.training.completions import Completions
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
from w2s_fast.training.first_pass import FirstPass, check_step_targets
from w2s_fast.training.head_input import HeadInput, head_of
from w2s_fast.training.mixup import check_mixed
from w2s_fast.training.monitor import Monitor, Watch
from w2s_fast.training.nested_dropout import nested_width
from w2s_fast.training.self_targets import SelfTargets
from w2s_fast.training.step import Stepper, StepResult
from w2s_fast.training.step_batches import StepBatches
from w2s_fast.training.step_record import StepRecord, step_series
from w2s_fast.training.step_targets import StepTargets
from w2s_fast.training.teacher import Teacher
from w2s_fast.training.thresholds import Thresholds
from w2s_fast.training.train_mode import check_no_layer_drop, training_mode
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
    step_targets: StepTargets | None = None,
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
        step_targets: targets made anew in every step from predictions of its rows (``SelfTargets``,
            ``CoTeaching`` for ``Twins``); None: the weak labels. ``agreement`` is then with these
            targets.
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
            or gradient that is not finite (the message names the step), or a checkpoint of another
            training.
    """
    check_step_targets(step_targets, model, data)
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
    start = None if checkpoint_dir is None else sample_weights(model)
    run = _Training(model, data, weak_labels, loss, cfg, seed, weight, stages, gold, step_targets)
    run.first_weights = start
    if watch is not None:
        run.monitor = Monitor(watch, model, loss, cfg, len(data), run.world, checkpoint_dir)
    rank = run.world.rank
    with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(derived_seed(seed, 0, rank) if rank else seed)
        with training_mode(model, cfg), contextlib.closing(run), run.anchored(model):
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
        step_targets: StepTargets | None,
    ) -> None:
        self.data, self.cfg, self.stages = data, cfg, stages
        self.model, self.step_targets = model, step_targets
        loss = TwinLoss(loss=loss) if isinstance(model, Twins) else loss
        self.loss = loss
        self.device = next(model.parameters()).device
        hard = weak_labels.ndim == 1
        if cfg.mixup:
            check_mixed(data, gold, step_targets)
        self.steps = cfg.steps(len(data))
        self.order = RowOrder(len(data), cfg.batch_size, cfg.epochs, seed, stages)
        self.world = get_world()
        self.batches = StepBatches(
            data, weak_labels, self.order, cfg.micro_batch_size, self.device, self.world,
            weight=weight, gold=gold, drop=getattr(step_targets, "drop", 0.0), seed=seed,
        )  # fmt: skip
        self.shapes = [
            (n, list(shape_of(t)), t.requires_grad) for n, t in module_tensors(model).items()
        ]
        self.head_input: HeadInput | None = None
        contrast = getattr(step_targets, "contrast", 0.0)
        if cfg.nested_dropout or contrast:
            name = "nested_dropout" if cfg.nested_dropout else "contrast"
            purpose = f"{name}={cfg.nested_dropout or contrast}"
            self.head_input = HeadInput(*(head_of(m, purpose) for m in students_of(model)))
        self.engine = make_engine(model, cfg, self.world)
        self.average = WeightAverage(self.engine, model, cfg, self.steps, self.world)
        n_classes = getattr(model, "n_classes", 2 if hard else weak_labels.shape[1])
        n_classes = getattr(data, "n_classes", n_classes)
        if cfg.mixup:
            self.batches.mix(cfg.mixup, n_classes)
        self.thresholds = Thresholds(cfg.threshold_scope, loss, n_classes, cfg.batch_size)
        self.teacher: Teacher | None = None
        if isinstance(step_targets, SelfTargets):
            self.teacher = Teacher(step_targets, self.engine, model, self.world)
        first_pass = None
        if step_targets is not None:
            first_pass = FirstPass(
                step_targets, self.engine, model, self.world, n_classes, self.teacher,
                self.head_input,
            )  # fmt: skip
        self.stepper = Stepper(self.engine, loss, self.thresholds, self.world, first_pass)
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
        self.first_weights: Tensor | None = None  # a sample, for the checkpoints
        self.told = 0  # records that ``tell`` has reported
        self.seed, self.seconds, self.start = seed, 0.0, 0.0

    @contextlib.contextmanager
    def anchored(self, model: nn.Module) -> Iterator[None]:
        """Let the steps inside the block penalise drift from the states of ``model`` now."""
        if not self.cfg.anchor:
            yield
            return
        anchor = Anchor(model, self.data, self.cfg.anchor)
        self.stepper.anchor = self.batches.anchor = anchor
        try:
            yield
        finally:
            anchor.close()

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
                self.finish_weights()
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

    def finish_weights(self) -> None:
        """Let the model have the weights that the training ends with."""
        if self.teacher is not None and self.teacher.is_final:
            self.teacher.write()
        else:
            self.average.apply()

    def step(self, step: int) -> None:
        """Take one optimizer step."""
        ctx = LossContext(step_frac=step / self.steps, step=step, state=self.loss_state)
        lr = self.cfg.lr_at(step, self.steps)
        with self.narrow_head(step), paired(self.model):
            result = self.stepper.step(self.batches.of_step(step), ctx, lr)
        self.loss_state = result.state
        nan, tokens = float("nan"), int(self.lengths[self.order.rows(step)].sum())
        coefficient = self.loss.coefficient(ctx.step_frac, step)
        seconds = time.perf_counter() - self.start
        record = StepRecord(step + 1, nan, nan, nan, coefficient, nan, lr, tokens, seconds)
        self.unread.append((result, record))
        self.average.add(step + 1)
        if self.teacher is not None:
            self.teacher.update(step + 1)

    def narrow_head(self, step: int) -> AbstractContextManager[None]:
        """Return a context in which the head reads the entries that nested dropout keeps."""
        head, sigma = self.head_input, self.cfg.nested_dropout
        if head is None:
            return contextlib.nullcontext()
        return head.at_width(nested_width(head.size, sigma, self.seed, step) if sigma else None)

    def close(self) -> None:
        """Remove the hooks of this training from the model."""
        if self.head_input is not None:
            self.head_input.close()

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

    def read_results(self, done: int) -> None:
        """Copy the results of the unread steps to the host and check that they are finite."""
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
        for offset, record in enumerate(self.log[-len(sums) :]):
            self.check_finite(record, own[offset, 0])

    def check_finite(self, record: StepRecord, own_loss: Tensor) -> None:
        """Raise `W2SError` if a step's loss or gradient is not finite; a collective call."""
        if math.isfinite(record.loss):
            if math.isinf(record.grad_norm) and not self.engine.skips_overflow:
                raise W2SError(
                    f"the loss is {record.loss:.3g} at step {record.step} of {self.steps}, but its "
                    "gradient is not finite; use a smaller lr, a warm-up (warmup_frac) or a dtype "
                    "of larger range"
                )
            return
        raise W2SError(
            f"the loss is {record.loss} at step {record.step} of {self.steps}"
            f"{self._on_ranks(own_loss)}; use a smaller lr, a warm-up (warmup_frac) or clip_norm=1"
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
        if self.teacher is not None:
            yield from self.teacher.tensors()
        yield from ((f"threshold.{k}", t) for k, t in self.thresholds.state.items())
        if self.loss_state is not None:
            yield "loss.state", self.loss_state
        if self.first_weights is not None:
            yield "first_weights", self.first_weights
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
        if self.first_weights is not None:
            checkpoint.check_first_weights(saved, self.first_weights)
        self.engine.load(saved.read)
        self.average.load(saved.read, saved.step)
        if self.teacher is not None:
            self.teacher.load(saved.read)
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
        for name in ("anchor", "nested_dropout"):  # checkpoints of before do not have them
            if not recipe[name]:
                del recipe[name]
        order = {} if self.stages is None else {"stages": _digest(self.stages)}
        made = {} if self.step_targets is None else {"step_targets": repr(self.step_targets)}
        return {
            **recipe,
            **order,
            **made,
            "seed": self.seed,
            "loss": repr(self.loss),
            "model": hashlib.sha256(repr(self.shapes).encode()).hexdigest(),
            "data": self.data.digest(),
            "targets": self.batches.digest(),
            "watch": None if self.monitor is None else self.monitor.identity,
        }


def _digest(stages: np.ndarray) -> str:
    return hashlib.sha256(stages.astype("<i8").tobytes()).hexdigest()


def make_engine(model: nn.Module, cfg: TrainConfig, world: World) -> Engine:
    """Return the engine for ``model``: plain torch, or DeepSpeed where ``cfg.zero_stage`` is not 0.

    Raises:
        W2SError: if the batch does not split over the processes, fp16 weights lack loss scaling, or
            ZeRO would train a model that skips layers at random.
    """
    cfg.batch_shape(world.size)
    dtype = _lowest_dtype(model)
    if cfg.zero_stage:
        if world.size > 1:
            check_no_layer_drop(model, cfg)
        return DeepSpeedEngine(model, cfg, world, dtype)
    if dtype == "fp16":
        raise W2SError("fp16 weights need loss scaling; use zero_stage=1 or more, or dtype bf16")
    return PlainEngine(model, cfg, world)


def _lowest_dtype(model: nn.Module) -> str:
    dtypes = {p.dtype for p in model.parameters()}
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    return next((name for dtype, name in names.items() if dtype in dtypes), "fp32")
