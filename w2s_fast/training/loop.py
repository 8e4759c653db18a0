"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import get_world
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
from w2s_fast.training.deepspeed.config import precision_settings
from w2s_fast.training.engine_choice import make_engine
from w2s_fast.training.first_pass import FirstPass, check_step_targets
from w2s_fast.training.head_input import HeadInput, head_of
from w2s_fast.training.mixup import check_mixed
from w2s_fast.training.model_form import lowest_dtype, model_form
from w2s_fast.training.monitor import Monitor, Watch
from w2s_fast.training.nested_dropout import nested_width
from w2s_fast.training.self_targets import SelfTargets
from w2s_fast.training.step import Stepper
from w2s_fast.training.step_batches import StepBatches
from w2s_fast.training.step_log import ProgressFn, StepLog
from w2s_fast.training.step_record import StepRecord, step_series
from w2s_fast.training.step_targets import StepTargets
from w2s_fast.training.teacher import Teacher
from w2s_fast.training.thresholds import Thresholds
from w2s_fast.training.train_mode import training_mode
from w2s_fast.training.weight_average import WeightAverage

# Reading a loss waits for the device or for other processes; a single CPU process has no such wait.
_READ_EVERY_STEPS = 20


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
        with (
            checkpoint.owned(checkpoint_dir, run.world),
            training_mode(model, cfg),
            contextlib.closing(run),
            run.anchored(model),
        ):
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
        self.form, self.dtype = model_form(model), str(lowest_dtype(model))
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
        self.log = StepLog(self.steps, self.engine, self.world)
        self.lengths = data.lengths
        self.monitor: Monitor | None = None
        self.first_weights: Tensor | None = None  # a sample, for the checkpoints
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
                self.log.read()
                self.log.tell(progress, on_step)
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
            **step_series(self.log.records),
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
        self.log.add(result, record)
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

    def save(self, directory: Path, done: int, identity: dict[str, Any]) -> None:
        """Write a checkpoint."""
        files = {} if self.monitor is None else self.monitor.before_checkpoint()
        checkpoint.save(directory, done, self.seconds, self.tensors(), identity, self.world, files)
        if self.monitor is not None:
            self.monitor.after_checkpoint()

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
        yield "log.steps", self.log.tensor()

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
        self.log.load(saved.read("log.steps"))
        self.seconds = saved.seconds
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
            **precision_settings(self.cfg),
            **order,
            **made,
            "seed": self.seed,
            "loss": repr(self.loss),
            "form": self.form,
            "dtype": self.dtype,
            "model": hashlib.sha256(repr(self.shapes).encode()).hexdigest(),
            "data": self.data.digest(),
            "targets": self.batches.digest(),
            "watch": None if self.monitor is None else self.monitor.identity,
        }


def _digest(stages: np.ndarray) -> str:
    return hashlib.sha256(stages.astype("<i8").tobytes()).hexdigest()
