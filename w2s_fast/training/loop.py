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

from w2s_fast.distributed.world import World, world
from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss
from w2s_fast.losses._base import IGNORE
from w2s_fast.models.weights import module_tensors, shape_of
from w2s_fast.training import checkpoint
from w2s_fast.training.completions import AnswerBatch, Answers
from w2s_fast.training.config import CARRIED_OUT, TrainConfig
from w2s_fast.training.data import RowData, RowOrder, check_targets, derived_seed
from w2s_fast.training.deepspeed.config import batch_shape
from w2s_fast.training.monitor import Watch, Watching
from w2s_fast.training.step import Engine, Micro, PlainEngine, Progress, StepResult, run_step
from w2s_fast.training.thresholds import Thresholds
from w2s_fast.training.train_mode import training_mode

# Reading a loss waits for the device, or for the other processes; one CPU has nothing to wait for.
_READ_EVERY = 20


def train(
    model: nn.Module,
    data: RowData,
    targets: np.ndarray,
    loss: Loss,
    cfg: TrainConfig,
    seed: int,
    *,
    weight: np.ndarray | None = None,
    checkpoint_dir: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, on the device it is on.

    The result is a function of the arguments: the global random state is neither used nor
    changed, and a training continued from a checkpoint ends in the same weights, bit for bit, as
    one that was not interrupted. Under a launcher every process calls this with the same arguments;
    rows, and with ``cfg.zero_stage`` the model, are shared out, which changes nothing but rounding.

    Args:
        model: ``forward(input_ids, attention_mask)`` gives logits (B, C).
        data: N rows, tokenized or cached, as the model takes them.
        targets: (N,) integer hard labels (-100: row not used), or (N, C) soft labels.
        loss: what is minimised.
        cfg: the recipe.
        seed: of data order and dropout. The same seed gives every loss the same batches.
        weight: (N,) row weights, or None.
        checkpoint_dir: where checkpoints go, ``cfg.checkpoint_every`` steps apart, and where a
            training that was interrupted continues from. The last one is left for the caller.
        progress: called on rank 0 with (steps done, steps, loss of the last step).
        watch: what to predict on the way, and whether the best or the last weights stay.

    Returns:
        ``steps``, ``seconds`` (over all interrupted parts), and per step ``losses`` (mean) and
        ``agreement`` (fraction of rows where student and weak label name the same class). With a
        watch of M rows and K looks also ``watched`` (the steps of the looks), ``scores`` (or None),
        ``best`` (the step of the highest score, or None) and ``trajectory`` (K, M, C) float32.

    Raises:
        W2SError: for targets that do not fit or are not finite, a loss that is not finite (the
            message names the step), or a checkpoint of another training.
    """
    tokens = len(data.labels) if isinstance(data, Answers) else None
    check_targets(targets, weight, len(data), getattr(model, "n_classes", None), tokens)
    run = _Training(model, data, targets, loss, cfg, seed, weight)
    if watch is not None:
        run.watching = Watching(watch, model, cfg, len(data), run.here, checkpoint_dir)
    device = run.device
    rank = run.here.rank
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(seed, 0, rank) if rank else seed)
        with training_mode(model, cfg):
            return run.loop(checkpoint_dir, progress)


class _Training:
    """State of one call of ``train``."""

    def __init__(
        self,
        model: nn.Module,
        data: RowData,
        targets: np.ndarray,
        loss: Loss,
        cfg: TrainConfig,
        seed: int,
        weight: np.ndarray | None,
    ) -> None:
        self.model, self.data, self.loss, self.cfg = model, data, loss, cfg
        self.device = next(model.parameters()).device
        hard = targets.ndim == 1
        self.targets = torch.from_numpy(targets.astype(np.int64 if hard else np.float32))
        self.weight = None if weight is None else torch.from_numpy(weight.astype(np.float32))
        self.steps = cfg.steps(len(data))
        self.order = RowOrder(len(data), cfg.batch_size, cfg.epochs, seed)
        self.here = world()
        self.shapes = [
            (n, list(shape_of(t)), t.requires_grad) for n, t in module_tensors(model).items()
        ]
        self.engine = make_engine(model, cfg, self.here)
        n_classes = getattr(model, "n_classes", 2 if hard else targets.shape[1])
        self.thresholds = Thresholds(cfg.threshold_scope, loss, n_classes, cfg.batch_size)
        if isinstance(data, Answers) and self.thresholds.mode in ("window", "ema"):
            raise W2SError(
                f"threshold_scope={cfg.threshold_scope!r} remembers rows, of which answers have no "
                "fixed number; use 'exact' or 'microbatch'"
            )
        state = loss.init_state()
        self.loss_state = None if state is None else state.to(self.device)
        self.log: list[list[float]] = []  # per step: loss, agreement
        self.unread: list[StepResult] = []
        self.watching: Watching | None = None
        self.seed, self.seconds = seed, 0.0

    def loop(
        self, directory: Path | None, progress: Callable[[int, int, float], None] | None
    ) -> dict[str, Any]:
        """All steps that are still to do."""
        what = self.identity() if directory is not None else {}
        watching = self.watching
        first = self.resume(directory, what)
        every = 1 if self.here.size == 1 and self.device.type == "cpu" else _READ_EVERY
        start = time.perf_counter() - self.seconds
        for step in range(first, self.steps):
            result = run_step(
                self.engine, self.loss, self.micro(step), self.thresholds, self.loss_state,
                Progress(step, self.steps), self.cfg.lr_at(step, self.steps), self.here,
            )  # fmt: skip
            self.loss_state = result.state
            self.unread.append(result)
            done = step + 1
            due = self.cfg.checkpoint_every and done % self.cfg.checkpoint_every == 0
            look = watching is not None and watching.due(done)
            if due or look or done % every == 0 or done == self.steps:
                self.read(done)
                if progress is not None and self.here.first:
                    progress(done, self.steps, self.log[-1][0])
            if look and watching is not None:
                watching.look(done)
            if due and directory is not None and done < self.steps:
                self.seconds = time.perf_counter() - start
                self.save(directory, done, what)
        return {
            "steps": self.steps,
            "seconds": time.perf_counter() - start,
            "losses": [row[0] for row in self.log],
            "agreement": [row[1] for row in self.log],
            **({} if watching is None else watching.finish()),
        }

    def save(self, directory: Path, done: int, what: dict[str, Any]) -> None:
        """Write a checkpoint."""
        if self.watching is not None:
            self.watching.before_checkpoint()
        checkpoint.save(directory, done, self.seconds, self.tensors(), what, self.here)
        if self.watching is not None:
            self.watching.after_checkpoint()

    def micro(self, step: int) -> list[Micro]:
        """This process's micro-batches of a step; every process has as many, of as many rows."""
        rows = self.order.rows(step)
        size, here = self.here.size, self.here
        weight = None if self.weight is None else self.weight[rows]
        if fill := -len(rows) % size:  # with a row that does not count
            weight = torch.ones(len(rows)) if weight is None else weight
            weight = torch.cat([weight, torch.zeros(fill)])
            rows = np.concatenate([rows, np.repeat(rows[:1], fill)])
        together = (self.cfg.micro_batch_size or len(rows) // size) * size
        mine = slice(here.rank, None, size)
        parts = []
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            counts = None if weight is None else weight[start : start + together]
            parts.append(self.part(part, counts, mine))
        return parts

    def part(self, rows: np.ndarray, weight: Tensor | None, mine: slice) -> Micro:
        """Everyone's rows of a micro-batch, of which ``mine`` are this process's."""
        index, batch = rows, self.data.batch(rows[mine], self.device)
        if isinstance(self.data, Answers):
            index, owner = self.data.label_index(rows, self.here.size)
            weight = None if weight is None else weight[owner]
        weak = self.targets[index]
        if isinstance(batch, AnswerBatch):
            weak[torch.from_numpy(index < 0)] = IGNORE
            batch = batch.padded(len(weak[mine]))
        weak = weak.to(self.device)
        weight = None if weight is None else weight.to(self.device)
        return Micro(batch, weak[mine], None if weight is None else weight[mine], weak, weight)

    def read(self, done: int) -> None:
        """Bring the results of the last steps to the host and stop at one that is not finite."""
        parts = [torch.stack([r.loss, r.agreed, r.rows]) for r in self.unread]
        sums = self.here.sum(torch.stack(parts).double()).cpu()
        self.unread.clear()
        self.log.extend([[loss, agreed / max(rows, 1.0)] for loss, agreed, rows in sums.tolist()])
        for offset, bad in enumerate((~sums[:, 0].isfinite()).tolist()):
            if bad:
                step = done - len(sums) + offset + 1
                raise W2SError(
                    f"the loss is {self.log[step - 1][0]} at step {step} of {self.steps}; use a "
                    "smaller lr, a warm-up (warmup_frac) or clip_norm=1"
                )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that changes during training, whole, by name."""
        yield from self.engine.tensors()
        yield from ((f"threshold.{k}", t) for k, t in self.thresholds.state.items())
        if self.loss_state is not None:
            yield "loss.state", self.loss_state
        yield "random.cpu", self.here.rows(torch.get_rng_state()[None])
        if self.device.type == "cuda":
            state = torch.cuda.get_rng_state(self.device)
            yield "random.cuda", self.here.rows(state[None])
        if self.watching is not None:
            yield from self.watching.tensors()
        yield "log.steps", torch.tensor(self.log, dtype=torch.float64)

    def resume(self, directory: Path | None, what: dict[str, Any]) -> int:
        """Restore the newest checkpoint, if any; the step to go on with."""
        found = checkpoint.load(directory, what, self.here) if directory is not None else None
        if found is None:
            return 0
        self.engine.load(found.read)
        for name in found.names("threshold."):
            if (t := found.read(name)) is not None:
                self.thresholds.state[name.partition(".")[2]] = t.to(self.device)
        if (state := found.read("loss.state")) is not None:
            self.loss_state = state.to(self.device)
        if self.watching is not None:
            self.watching.load(found)
        self.restore_random(found.read("random.cpu"), found.read("random.cuda"), found.step)
        log = found.read("log.steps")
        self.log, self.seconds = [] if log is None else log.tolist(), found.seconds
        return found.step

    def restore_random(self, cpu: Tensor | None, cuda: Tensor | None, step: int) -> None:
        """Each process's own random state; another number of processes begins new ones."""
        if cpu is None or len(cpu) != self.here.size:
            torch.manual_seed(derived_seed(self.seed, step, self.here.rank))
            return
        torch.set_rng_state(cpu[self.here.rank].clone())
        if self.device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda[self.here.rank].clone(), self.device)

    def identity(self) -> dict[str, Any]:
        """What makes this training this one, for the checkpoint."""
        recipe = {k: v for k, v in dataclasses.asdict(self.cfg).items() if k not in CARRIED_OUT}
        hashed = hashlib.sha256(self.targets.numpy().tobytes())
        hashed.update(b"" if self.weight is None else self.weight.numpy().tobytes())
        return {
            **recipe,
            "seed": self.seed,
            "loss": repr(self.loss),
            "model": hashlib.sha256(repr(self.shapes).encode()).hexdigest(),
            "data": self.data.digest(),
            "targets": hashed.hexdigest(),
            "watch": None if self.watching is None else self.watching.identity,
        }


def make_engine(model: nn.Module, cfg: TrainConfig, here: World) -> Engine:
    """What moves the weights of ``model``: plain torch, or DeepSpeed as ``cfg.zero_stage`` says.

    Raises:
        W2SError: for a recipe that the processes or the model's dtype do not fit.
    """
    batch_shape(cfg, here.size)
    dtype = _lowest_dtype(model)
    if cfg.zero_stage:
        from w2s_fast.training.deepspeed.engine import ShardedEngine

        return ShardedEngine(model, cfg, here, dtype)
    if dtype == "fp16":
        raise W2SError("fp16 weights need loss scaling; use zero_stage=1 or more, or dtype bf16")
    return PlainEngine(model, cfg, here)


def _lowest_dtype(model: nn.Module) -> str:
    found = {p.dtype for p in model.parameters()}
    names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    return next((name for dtype, name in names.items() if dtype in found), "fp32")
