"""Train a tiny model on any number of ranks: the program of a rank, and how results compare."""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers.decided import Decided
from w2s_fast.distributed.world import World, exit_process, get_world, init_distributed
from w2s_fast.losses import make_loss
from w2s_fast.losses.conflict import ExplicitConflict
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.training import (
    CoTeaching,
    Encoded,
    SelfTargets,
    TrainConfig,
    Twins,
    checkpoint,
    difficulty_stages,
    train,
    truncate_head,
)

N = 43  # rows: no batch of the matrix divides it, so last batches are short and ranks run dry


class Tiny(nn.Module):
    """Embedding, one nonlinear layer and a head: 333 parameters, no size divides by 2 or 4."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.n_classes = 2
        torch.manual_seed(0)
        self.table = nn.Embedding(23, 9)
        self.layer = nn.Linear(9, 11)
        self.drop = nn.Dropout(0.3)  # silent unless a recipe wants it
        self.head = nn.Linear(11, 2, bias=False)
        self.to(dtype)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = (self.table(ids) * mask[..., None]).sum(1)
        return self.head(self.drop(self.extra(torch.tanh(self.layer(x))))).float()

    def extra(self, x: Tensor) -> Tensor:
        """What a subclass adds before the head."""
        return x


class Skipping(Tiny):
    """Skips a residual layer at random, as LayerDrop does: each rank in batches of its own."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.skipped, self.layerdrop = nn.Linear(11, 11), rate

    def extra(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand(()) < self.layerdrop else x + self.skipped(x)


def rows() -> tuple[Encoded, np.ndarray, np.ndarray]:
    """Of a seed that leaves no score near a threshold: see ``Decided``."""
    g = np.random.default_rng(21)
    lengths = g.integers(2, 9, N)
    tokens = g.integers(0, 23, lengths.sum()).astype(np.int32)
    data = Encoded(tokens, np.concatenate([[0], np.cumsum(lengths)]), None, 0)
    p = g.uniform(size=N)
    weight = np.where(g.uniform(size=N) < 0.4, 0.0, g.uniform(0.5, 2, N))  # many unlabelled rows
    return data, np.stack([1 - p, p], 1), weight


class Stopped(Exception):
    pass


class _Stopping:
    """A loss that stops the training, on every rank, in the forward of one step."""

    def __init__(self, loss: Any, step: int | None) -> None:
        self._loss, self._step = loss, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def __repr__(self) -> str:
        return repr(self._loss)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs["step"] == self._step:
            raise Stopped
        return self._loss(*args, **kwargs)


def fit(spec: str = "logconf", weighted: bool = True, **fields: Any) -> dict[str, Any]:
    """Train; the loss curve, and all weights as one list."""
    directory, dtype = fields.pop("directory", None), fields.pop("dtype", "float32")
    targets, forget = fields.pop("targets", None), fields.pop("co_teaching", None)
    stop, n_stages = fields.pop("stop", None), fields.pop("stages", None)
    alpha, select_width = fields.pop("conflict", None), fields.pop("select_width", False)
    layerdrop = fields.pop("layerdrop", 0.0)
    gold = (np.arange(N) // 2 + fields.pop("flipped", False)) % 2
    data, labels, weight = rows()
    stages = None if n_stages is None else difficulty_stages(data.lengths, n_stages)
    if dtype == "float16":
        _allow_fp16()
    model = Skipping(layerdrop) if layerdrop else Tiny(getattr(torch, dtype))
    step_targets: Any = None if targets is None else SelfTargets(**targets)
    trained: Any = model
    if forget is not None:
        step_targets = CoTeaching(forget=forget, ramp=0.3)
        trained = Twins(model, Tiny(getattr(torch, dtype)))
    streams: list[int] = []  # where the random numbers of each mask came from
    model.drop.register_forward_pre_hook(
        lambda *_: streams.append(zlib.crc32(torch.get_rng_state().numpy().tobytes()))
    )
    cfg = TrainConfig(**{"epochs": 2, "lr": 3e-2, "weight_decay": 0.1, **fields})
    loss: Any = make_loss(spec)
    if alpha is not None:
        loss = ExplicitConflict(loss=loss, alpha=alpha)
    if get_world().size == 1 and dtype == "float32" and forget is None:
        loss = Decided(loss)  # what the others are compared with

    try:
        log = train(
            trained, data, labels, _Stopping(loss, stop), cfg, seed=5,
            weight=weight if weighted else None, stages=stages,
            gold=None if alpha is None else gold, step_targets=step_targets,
            checkpoint_dir=None if directory is None else Path(directory),
        )  # fmt: skip
    except Stopped:
        return {}
    extra = {"head_width": truncate_head(model, data, labels)} if select_width else {}
    flat = []
    for t in module_tensors(trained).values():
        with gathered([t]):
            flat += t.detach().double().flatten().tolist()
    first = get_world().all_gather_object(streams[0])
    assert len(set(map(str, get_world().all_gather_object(flat)))) == 1, "ranks differ in weights"
    return {
        "losses": log["losses"], "agreement": log["agreement"], "weights": flat, "streams": first
    } | extra  # fmt: skip


def _allow_fp16() -> None:
    """DeepSpeed refuses fp16 on CPUs without fp16 instructions; torch computes it on all."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def close(got: dict[str, Any], want: dict[str, Any], eps: float = 1.2e-7) -> None:
    """Sums of 43 fp32 rows in another order, over two dozen steps of AdamW."""
    for name in ("losses", "agreement", "weights"):
        a, b = torch.tensor(got[name]), torch.tensor(want[name])
        error, room = (a - b).abs().max(), 100 * eps * b.abs().max()
        assert a.shape == b.shape and error <= room, f"{name}: {error:.2e} > {room:.2e}"


# 11 steps, of which the last 9 are averaged: a stop after step 4 is among them.
RECIPE = {"batch_size": 8, "checkpoint_every": 2, "micro_batch_size": 2, "average_frac": 0.8}


def _die_while_saving(world: World, moment: str) -> None:
    name = "_write" if moment == "writing" else "_publish"
    real = getattr(checkpoint, name)

    def deadly(what: Any, path: Path, *rest: Any) -> Any:
        if "00000004" in str(path) and world.rank == (1 if moment == "writing" else 0):
            if moment == "writing":
                path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(what, path, *rest)

    setattr(checkpoint, name, deadly)


def main(job: dict[str, Any]) -> None:
    world = init_distributed(20)
    if "die" in job:
        _die_while_saving(world, job["die"])
    found = [fit(**fields) for fields in job["fits"]]
    if world.is_main_process:
        Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    exit_process(0)
