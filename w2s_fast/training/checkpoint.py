"""Checkpoints in the middle of training: safetensors and JSON, whole or not there at all.

``<dir>/step-00000120/`` holds a ``state-<rank>.safetensors`` of every process (each wrote an equal
share of weights, optimizer, thresholds, random state and log, all as whole tensors by name) and
``state.json``: the step, what the training was, and a SHA-256 of every file. The folder is filled
beside its final name, flushed, and renamed once every process has said that its file is closed, so
a kill at any point leaves the one before intact. The newest that is undamaged wins; the last two
are kept. Nothing in it depends on the number of processes or on how they shared the model.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError
from w2s_fast.store import file_hash

_PREFIX = "step-"
_META = "state.json"
N_KEPT = 2


class Checkpoint:
    """A finished checkpoint: the step to continue with, and its tensors by dotted name."""

    def __init__(self, path: Path, meta: dict[str, Any], world: World) -> None:
        self.path, self._world = path, world
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        self._files = {name: file for file, names in meta["tensors"].items() for name in names}
        self._position = {name: i for i, name in enumerate(self._files)}

    def read(self, name: str) -> Tensor | None:
        """A tensor, on every process; None if it was not saved.

        One process reads it from disk and sends it to the others, each its share of them: all call
        this for the same names in the same order.
        """
        if name not in self._files:
            return None
        import torch
        from safetensors import safe_open

        root = self._position[name] % self._world.size
        with safe_open(self.path / self._files[name], framework="pt") as f:
            if self._world.rank == root:
                return self._world.broadcast(f.get_tensor(name).contiguous(), root)
            like = f.get_slice(name)
            dtype = _DTYPES[like.get_dtype()]
            t = torch.empty(like.get_shape(), dtype=getattr(torch, dtype))
        return self._world.broadcast(t, root)

    def names(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix``, in a fixed order."""
        return sorted(name for name in self._files if name.startswith(prefix))


_DTYPES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64",
    "I32": "int32", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def save(
    directory: Path,
    step: int,
    seconds: float,
    tensors: Iterable[tuple[str, Tensor]],
    what: dict[str, Any],
    world: World = SINGLE_PROCESS,
) -> None:
    """Write the checkpoint "``step`` steps are done" and remove all but the last ``N_KEPT``.

    Args:
        directory: folder of this training's checkpoints, one that all processes see.
        step: optimizer steps done.
        seconds: training time so far.
        tensors: by dotted name, on any device; the same names in the same order on every process.
        what: identity of the training, JSON values; compared on ``load``.
        world: this process; all take part.

    Raises:
        W2SError: on every process if one cannot write, a full disk for instance; older ones are
            kept.
    """
    final = directory / f"{_PREFIX}{step:08d}"
    temporary = directory / f".{final.name}"
    error = _begin(temporary) if world.is_main_process else ""
    file = f"state-{world.rank:05d}.safetensors"
    mine: dict[str, Tensor] = {}
    for i, (name, t) in enumerate(tensors):
        if i % world.size == world.rank:
            mine[name] = t.detach().to("cpu", copy=True).contiguous()
    _agree(world, final, error)
    digest, error = _write(mine, temporary / file)
    _agree(world, final, error)  # everyone's file is closed
    written = world.all_gather_object([file, digest, list(mine)])
    if world.is_main_process:
        meta = {
            "step": step,
            "seconds": seconds,
            "training": what,
            "files": {name: hashed for name, hashed, _ in written},
            "tensors": {name: names for name, _, names in written},
        }
        error = _publish(temporary, final, meta)
    _agree(world, final, error)
    if world.is_main_process:
        for old in finished(directory)[:-N_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def load(directory: Path, what: dict[str, Any], world: World = SINGLE_PROCESS) -> Checkpoint | None:
    """The newest undamaged checkpoint of this training, or None; all processes take part.

    Raises:
        W2SError: if all are damaged, or the newest is of another training; the message names what
            differs.
    """
    found = world.broadcast_object([p.name for p in finished(directory)])
    if world.is_main_process:
        for left_by_a_kill in directory.glob(f".{_PREFIX}*"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
    damage: list[str] = []
    for name in reversed(found):
        path = directory / name
        meta, fault = _verify(path, world)
        if meta is None:
            damage.append(f"checkpoint {path} is damaged ({fault})")
            continue
        if damage and world.is_main_process:
            warnings.warn(f"{damage[-1]}; continuing from {name}", stacklevel=2)
        saved = meta["training"]
        differs = sorted(k for k in {*saved, *what} if saved.get(k) != what.get(k))
        if differs:
            raise W2SError(
                f"checkpoint {path} is of another training: "
                f"{_difference(differs[0], saved, what)}; use another directory, or remove this "
                "one to start again"
            )
        return Checkpoint(path, meta, world)
    if damage:
        raise W2SError(f"{damage[0]}; remove it to continue")
    return None


def finished(directory: Path) -> list[Path]:
    """Folders of finished checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.name.startswith(_PREFIX))


def _begin(temporary: Path) -> str:
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as e:
        return _line(e)
    return ""


def _write(tensors: dict[str, Tensor], path: Path) -> tuple[str, str]:
    """Write one file and flush it: (SHA-256, what went wrong)."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
        flush(path)
        return file_hash(path), ""
    except (OSError, SafetensorError) as e:
        return "", _line(e)


def _publish(temporary: Path, final: Path, meta: dict[str, Any]) -> str:
    try:
        (temporary / _META).write_text(json.dumps(meta, indent=1, sort_keys=True))
        flush(temporary / _META)
        if final.exists():  # a later try of the same step
            shutil.rmtree(final)
        os.replace(temporary, final)
        flush(final.parent)
    except OSError as e:
        return _line(e)
    return ""


def _agree(world: World, final: Path, error: str) -> None:
    """Raise on every process if one of them failed."""
    for rank, told in enumerate(world.all_gather_object(error)):
        if told:
            if world.is_main_process:
                shutil.rmtree(final.with_name(f".{final.name}"), ignore_errors=True)
            who = "" if world.size == 1 else f" by rank {rank}"
            raise W2SError(
                f"checkpoint {final} could not be written{who}: {told}; free some space and run "
                "again, the training continues from the checkpoint before"
            )


def _verify(path: Path, world: World) -> tuple[dict[str, Any] | None, str]:
    """The record of a checkpoint whose files are all as they were written, else the fault."""
    try:
        meta = json.loads((path / _META).read_text())
        files = sorted(meta["files"].items())
        missing = {"training", "step", "seconds", "tensors"} - meta.keys()
        fault = f"{_META} lacks {', '.join(sorted(missing))}" if missing else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        meta, files, fault = None, [], f"{_META}: {type(e).__name__}"
    for name, wanted in files[world.rank :: world.size]:  # every process checks its share
        try:
            if file_hash(path / name) != wanted:
                fault = f"{name} differs from its checksum"
        except OSError as e:
            fault = f"{name}: {e.strerror}"
    faults = [f for f in world.all_gather_object(fault) if f]
    return (None, faults[0]) if faults else (meta, "")


def _difference(key: str, saved: dict[str, Any], what: dict[str, Any]) -> str:
    short = [str(d.get(key))[:60] for d in (saved, what)]
    return f"{key} was {short[0]}, now it is {short[1]}"


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:300]
