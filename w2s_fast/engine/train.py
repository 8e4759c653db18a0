"""The training loop."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.engine import checkpoint
from w2s_fast.engine.config import TrainConfig
from w2s_fast.engine.data import Encoded, RowOrder
from w2s_fast.engine.modes import training_mode
from w2s_fast.engine.step import Micro, PlainEngine, Progress, StepResult, run_step
from w2s_fast.engine.thresholds import Thresholds
from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss
from w2s_fast.weights import load_module, module_tensors

# Reading a loss waits for the device; a CPU has nothing to wait for.
_READ_EVERY = {"cpu": 1}
_READ_EVERY_OTHERWISE = 20


def train(
    model: nn.Module,
    data: Encoded,
    targets: np.ndarray,
    loss: Loss,
    cfg: TrainConfig,
    seed: int,
    *,
    weight: np.ndarray | None = None,
    checkpoint_dir: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, on the device it is on.

    The result is a function of the arguments: the global random state is neither used nor
    changed, and a training continued from a checkpoint ends in the same weights, bit for bit, as
    one that was not interrupted.

    Args:
        model: ``forward(input_ids, attention_mask)`` gives logits (B, C).
        data: N tokenized rows.
        targets: (N,) integer hard labels (-100: row not used), or (N, C) soft labels.
        loss: what is minimised.
        cfg: the recipe.
        seed: of data order and dropout. The same seed gives every loss the same batches.
        weight: (N,) row weights, or None.
        checkpoint_dir: where checkpoints go, ``cfg.checkpoint_every`` steps apart, and where a
            training that was interrupted continues from. The last one is left for the caller.
        progress: called with (steps done, steps, loss of the last step).

    Returns:
        ``steps``, ``seconds`` (over all interrupted parts), and per step ``losses`` (mean) and
        ``agreement`` (fraction of rows where student and weak label name the same class).

    Raises:
        W2SError: for targets that do not fit or are not finite, a loss that is not finite (the
            message names the step), or a checkpoint of another training.
    """
    check_targets(targets, weight, len(data), getattr(model, "n_classes", None))
    run = _Training(model, data, targets, loss, cfg, seed, weight)
    device = run.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with training_mode(model, cfg):
            return run.loop(checkpoint_dir, progress)


class _Training:
    """State of one call of ``train``."""

    def __init__(
        self,
        model: nn.Module,
        data: Encoded,
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
        self.engine = PlainEngine(model, cfg)
        n_classes = getattr(model, "n_classes", 2 if hard else targets.shape[1])
        self.thresholds = Thresholds(cfg.threshold, loss, n_classes, cfg.batch_size)
        state = loss.init_state()
        self.loss_state = None if state is None else state.to(self.device)
        self.log: list[list[float]] = []  # per step: loss, agreement
        self.unread: list[StepResult] = []
        self.seed, self.seconds = seed, 0.0

    def loop(
        self, directory: Path | None, progress: Callable[[int, int, float], None] | None
    ) -> dict[str, Any]:
        """All steps that are still to do."""
        what = self.identity() if directory is not None else {}
        first = self.resume(directory, what)
        every = _READ_EVERY.get(self.device.type, _READ_EVERY_OTHERWISE)
        start = time.perf_counter() - self.seconds
        for step in range(first, self.steps):
            result = run_step(
                self.engine, self.loss, self.micro(step), self.thresholds, self.loss_state,
                Progress(step, self.steps), self.cfg.lr_at(step, self.steps),
            )  # fmt: skip
            self.loss_state = result.state
            self.unread.append(result)
            done = step + 1
            due = self.cfg.checkpoint_every and done % self.cfg.checkpoint_every == 0
            if due or done % every == 0 or done == self.steps:
                self.read(done)
                if progress is not None:
                    progress(done, self.steps, self.log[-1][0])
            if due and directory is not None and done < self.steps:
                self.seconds = time.perf_counter() - start
                checkpoint.save(directory, done, self.seconds, self.tensors(), what)
        return {
            "steps": self.steps,
            "seconds": time.perf_counter() - start,
            "losses": [row[0] for row in self.log],
            "agreement": [row[1] for row in self.log],
        }

    def micro(self, step: int) -> list[Micro]:
        """The micro-batches of a step."""
        rows = self.order.rows(step)
        size = self.cfg.micro_batch_size or len(rows)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [
            Micro(
                self.data.batch(part, self.device),
                self.targets[part].to(self.device),
                None if self.weight is None else self.weight[part].to(self.device),
            )
            for part in parts
        ]

    def read(self, done: int) -> None:
        """Bring the results of the last steps to the host and stop at one that is not finite."""
        values = torch.stack([torch.stack([r.loss, r.agreement]) for r in self.unread])
        self.unread.clear()
        self.log.extend(values.double().cpu().tolist())
        for offset, bad in enumerate((~values[:, 0].isfinite()).tolist()):
            if bad:
                step = done - len(values) + offset + 1
                raise W2SError(
                    f"the loss is {self.log[step - 1][0]} at step {step} of {self.steps}; use a "
                    "smaller lr, a warm-up (warmup_frac) or clip_norm=1"
                )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes during training."""
        out = {f"model.{k}": t for k, t in module_tensors(self.model).items()}
        out |= {f"optimizer.{k}": t for k, t in self.engine.tensors().items()}
        out |= {f"threshold.{k}": t for k, t in self.thresholds.state.items()}
        if self.loss_state is not None:
            out["loss.state"] = self.loss_state
        out["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            out["random.cuda"] = torch.cuda.get_rng_state(self.device)
        out["log.steps"] = torch.tensor(self.log, dtype=torch.float64)
        return out

    def resume(self, directory: Path | None, what: dict[str, Any]) -> int:
        """Restore the newest checkpoint, if any; the step to go on with."""
        found = checkpoint.load(directory, what) if directory is not None else None
        if found is None:
            return 0
        parts: dict[str, dict[str, Tensor]] = {}
        for key, t in found.tensors.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = t
        load_module(self.model, parts["model"])
        self.engine.load(parts["optimizer"])
        here = self.device
        self.thresholds.state = {k: t.to(here) for k, t in parts.get("threshold", {}).items()}
        if "loss" in parts:
            self.loss_state = parts["loss"]["state"].to(here)
        torch.set_rng_state(parts["random"]["cpu"])
        if here.type == "cuda" and "cuda" in parts["random"]:
            torch.cuda.set_rng_state(parts["random"]["cuda"], here)
        self.log, self.seconds = parts["log"]["steps"].tolist(), found.seconds
        return found.step

    def identity(self) -> dict[str, Any]:
        """What makes this training this one, for the checkpoint."""
        shapes = [(n, list(t.shape), str(t.dtype)) for n, t in self.model.state_dict().items()]
        recipe = dataclasses.asdict(self.cfg)
        recipe.pop("checkpoint_every")  # changes nothing but the checkpoints
        hashed = hashlib.sha256(self.targets.numpy().tobytes())
        hashed.update(b"" if self.weight is None else self.weight.numpy().tobytes())
        return {
            **recipe,
            "seed": self.seed,
            "loss": repr(self.loss),
            "model": hashlib.sha256(repr(shapes).encode()).hexdigest(),
            "data": self.data.digest(),
            "targets": hashed.hexdigest(),
        }


def check_targets(
    targets: np.ndarray, weight: np.ndarray | None, n: int, n_classes: int | None
) -> None:
    """Raise ``W2SError`` unless targets and weights fit ``n`` rows and ``n_classes`` classes."""
    if targets.ndim == 2 and np.issubdtype(targets.dtype, np.floating):
        expected: tuple[int, ...] = (n, n_classes or targets.shape[1])
        bad = ~np.isfinite(targets).all(1) | (targets < 0).any(1)
        problem = "weak labels must be finite and not negative"
    elif targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        expected = (n,)
        bad = ((targets < 0) & (targets != -100)) | (targets >= (n_classes or np.inf))
        problem = f"labels must be 0..{(n_classes or 0) - 1}, or -100 for a row not to use"
    else:
        raise W2SError(
            f"targets have shape {targets.shape} and dtype {targets.dtype}; expected integers "
            "(N,) or floats (N, C)"
        )
    if targets.shape != expected:
        raise W2SError(f"targets have shape {targets.shape}; expected {expected} to fit the data")
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise W2SError(f"target {targets[row].tolist()} in row {row}: {problem}")
    if weight is not None:
        if weight.shape != (n,):
            raise W2SError(f"weight has shape {weight.shape}; expected {(n,)} to fit the data")
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise W2SError("row weights must be finite and not negative")
