"""Checkpoints in the middle of training: safetensors and JSON, written atomically.

``<dir>/step-00000120/`` holds a ``state-<rank>.safetensors`` of every process and ``state.json``.
Each process writes an equal share of weights, optimizer state, thresholds, random state and log,
all as whole tensors by name. ``state.json`` has the step, the identity of the training, a SHA-256
of every file, also of those outside the folder that the training needs, and one of its own content.
The folder is written under a temporary name, flushed, and renamed once every process has closed its
file, so a kill at any point leaves the previous checkpoint intact. ``load`` takes the newest
undamaged checkpoint; the last two are kept. Checkpoints do not depend on the number of processes or
on how the model was sharded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError, one_line
from w2s_fast.files import file_hash, file_lock, read_sealed, write_sealed
from w2s_fast.store import StoreWarning

_PREFIX = "step-"
_META = "state.json"
_FORMAT = 2  # of ``state.json``; 1 did not record it, nor form and dtype of the model, nor scores
N_KEPT = 2


class Checkpoint:
    """A finished checkpoint: the step to continue with, and tensors by dotted name.

    ``files`` are those that ``save`` was given.
    """

    def __init__(self, path: Path, meta: dict[str, Any], world: World) -> None:
        self.path, self._world = path, world
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        outside = ((file.removeprefix("../"), file, sha) for file, sha in meta["files"].items())
        self.files = {name: sha for name, file, sha in outside if name != file}
        self._files = {name: file for file, names in meta["tensors"].items() for name in names}
        self._position = {name: i for i, name in enumerate(self._files)}

    def read(self, name: str) -> Tensor | None:
        """Return a tensor, on every process; None if it was not saved.

        A collective call: one process reads the tensor from disk and broadcasts it, so all must
        read the same names in the same order. The tensors are distributed over the readers.
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
        """Return the names that begin with ``prefix``, in a fixed order."""
        return sorted(name for name in self._files if name.startswith(prefix))


_DTYPES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}  # fmt: skip


def save(
    directory: Path,
    step: int,
    seconds: float,
    tensors: Iterable[tuple[str, Tensor]],
    identity: dict[str, Any],
    world: World = SINGLE_PROCESS,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the checkpoint after ``step`` steps and remove all but the last ``N_KEPT``.

    Later ones are removed too: the training did not continue from them, so they are damaged.

    Args:
        directory: folder of this training's checkpoints, shared by all processes.
        step: optimizer steps done.
        seconds: training time so far.
        tensors: by dotted name, on any device; the same names in the same order on every process.
        identity: of the training, JSON values; compared on ``load``.
        world: this process; all take part.
        files: SHA-256 of further files that the training needs, by path relative to ``directory``;
            rank 0's are used.

    Raises:
        W2SError: on every process if one cannot write (a full disk for instance); older
            checkpoints are kept.
    """
    final = directory / f"{_PREFIX}{step:08d}"
    temporary = directory / f".{final.name}"
    error = _begin(temporary) if world.is_main_process else ""
    file = f"state-{world.rank:05d}.safetensors"
    own: dict[str, Tensor] = {}
    for i, (name, t) in enumerate(tensors):
        if i % world.size == world.rank:
            own[name] = t.detach().to("cpu", copy=True).contiguous()
    _raise_on_all(world, final, error)
    digest, error = _write(own, temporary / file)
    _raise_on_all(world, final, error)  # the files of all processes are closed
    written = world.all_gather_object([file, digest, list(own)])
    if world.is_main_process:
        meta = {
            "format": _FORMAT,
            "step": step,
            "seconds": seconds,
            "training": identity,
            "files": {name: hashed for name, hashed, _ in written}
            | {f"../{name}": hashed for name, hashed in (files or {}).items()},
            "tensors": {name: names for name, _, names in written},
        }
        error = _publish(temporary, final, meta)
    _raise_on_all(world, final, error)
    if world.is_main_process:
        _prune(directory, final)


@contextlib.contextmanager
def owned(directory: Path | None, world: World) -> Iterator[None]:
    """Keep other trainings out of a folder of checkpoints inside the block; a collective call.

    Raises:
        W2SError: on every process, if another training uses it.
    """
    taken = (
        f"checkpoint_dir {directory} is in use by the training of process {{pid}}; give every "
        "training a folder of its own"
    )
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            assert directory is not None
            # A folder that cannot be written is an error of the first checkpoint, and some file
            # systems have no locks.
            with contextlib.suppress(OSError):
                directory.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_lock(directory / ".lock", taken))

        if directory is not None:
            world.call_on_main(lock)
        yield
        world.barrier()  # other processes may still read the best weights


def load(
    directory: Path, identity: dict[str, Any], world: World = SINGLE_PROCESS
) -> Checkpoint | None:
    """Return the newest undamaged checkpoint of this training, or None; a collective call.

    A warning names the damaged ones.

    Raises:
        W2SError: if the newest undamaged one is of another training, the message names the
            difference, or of another version of this package; or if one may not be read.
    """
    names = world.broadcast_object([p.name for p in finished(directory)])
    if world.is_main_process:
        for unfinished in directory.glob(f".{_PREFIX}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    damaged: list[str] = []
    for name in reversed(names):
        path = directory / name
        meta, fault = _verify(path, world)
        if meta is None:
            damaged.append(f"checkpoint {path} is damaged ({fault})")
            continue
        _warn(damaged, f"continuing from {name}", world)
        if meta.get("format") != _FORMAT:
            raise W2SError(
                f"checkpoint {path} was written by another version of w2s_fast; use another "
                "directory, or remove this one to start again"
            )
        saved = meta["training"]
        if differs := _differing(saved, identity):
            raise W2SError(
                f"checkpoint {path} is of another training: "
                f"{_difference(differs[0], saved, identity)}; use another directory, or remove "
                "this one to start again"
            )
        return Checkpoint(path, meta, world)
    _warn(damaged, "starting the training again", world)
    return None


def check_first_weights(saved: Checkpoint, own: Tensor) -> None:
    """Check that a training began with the weights of this one; a collective call.

    Args:
        saved: its checkpoint, with the tensor ``first_weights``; older ones lack it and pass.
        own: ``sample_weights`` of this training's model before the first step.

    Raises:
        W2SError: if the weights differ by more than rounding, as processors draw them.
    """
    theirs = saved.read("first_weights")
    numbers = own.nan_to_num()
    bf16 = numbers.equal(numbers.bfloat16().float())  # whose neighbours differ by up to 0.8 %
    rtol = 1e-2 if bf16 else 1e-3
    if theirs is None or theirs.allclose(own, rtol=rtol, atol=1e-6, equal_nan=True):
        return
    raise W2SError(
        f"checkpoint {saved.path} is of another training: it began with other weights, which "
        f"differ by up to {(theirs - own).abs().max():.2g}; pass a model as it was built, use "
        "another directory, or remove this one to start again"
    )


def _warn(damaged: list[str], outcome: str, world: World) -> None:
    """Warn once of all damaged checkpoints."""
    if damaged and world.is_main_process:
        warnings.warn(f"{'; '.join(damaged)}; {outcome}", StoreWarning, stacklevel=3)


def finished(directory: Path) -> list[Path]:
    """Return the folders of finished checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.name.startswith(_PREFIX))


def _prune(directory: Path, newest: Path) -> None:
    """Keep ``newest`` and those just before it, ``N_KEPT`` in all."""
    folders = finished(directory)
    end = folders.index(newest) + 1
    for folder in [*folders[: max(0, end - N_KEPT)], *folders[end:]]:
        with contextlib.suppress(OSError):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; a kill leaves it whole or as an unfinished one."""
    unfinished = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(unfinished, ignore_errors=True)
    os.replace(folder, unfinished)
    shutil.rmtree(unfinished)


def _begin(temporary: Path) -> str:
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as e:
        return one_line(e)
    return ""


def _write(tensors: dict[str, Tensor], path: Path) -> tuple[str, str]:
    """Write one file and flush it; return (SHA-256, error message)."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
        flush(path)
        return file_hash(path), ""
    except (OSError, SafetensorError) as e:
        return "", one_line(e)


def _publish(temporary: Path, final: Path, meta: dict[str, Any]) -> str:
    try:
        write_sealed(temporary / _META, meta)
        if final.exists():  # left by an earlier attempt at this step
            _remove(final)
        os.replace(temporary, final)
        flush(final.parent)
    except OSError as e:
        return one_line(e)
    return ""


def _raise_on_all(world: World, final: Path, error: str) -> None:
    """Raise on every process if one of them failed."""
    for rank, message in enumerate(world.all_gather_object(error)):
        if message:
            if world.is_main_process:
                shutil.rmtree(final.with_name(f".{final.name}"), ignore_errors=True)
            process = "" if world.size == 1 else f" by rank {rank}"
            raise W2SError(
                f"checkpoint {final} could not be written{process}: {message}; free some space and "
                "run again, the training continues from the checkpoint before"
            )


def _verify(path: Path, world: World) -> tuple[dict[str, Any] | None, str]:
    """Return the metadata of an undamaged checkpoint, or None and the fault.

    Raises:
        W2SError: A process may not read it; it could not write there either.
    """
    meta, fault, forbidden = None, "", ""
    try:
        meta = read_sealed(path / _META)
        files = sorted(meta["files"].items())
        for name, expected in files[world.rank :: world.size]:  # each process checks its share
            if file_hash(path / name) != expected:
                fault = f"{name} differs from its checksum"
    except PermissionError as e:
        forbidden = f"{os.path.relpath(e.filename or path, path)}: {e.strerror}"
    except OSError as e:
        fault = f"{os.path.relpath(e.filename or path, path)}: {e.strerror}"
    except ValueError as e:
        fault = str(e)
    faults = world.all_gather_object([fault, forbidden])
    if reason := next((no for _, no in faults if no), ""):
        raise W2SError(
            f"checkpoint {path} may not be read ({reason}): ask its owner for permission, or move "
            "it away to continue from the one before"
        )
    first = next((f for f, _ in faults if f), "")
    return (None, first) if first else (meta, "")


def _difference(key: str, saved: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """Say how a value differs, of groups of values its first part that does."""
    values = [d.get(key, "not set") for d in (saved, identity)]
    if all(isinstance(value, dict) for value in values):
        return f"{key}.{_difference(_differing(*values)[0], *values)}"
    short = [str(value)[:160] for value in values]
    return f"{key} was {short[0]}, now it is {short[1]}"


def _differing(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    return sorted(k for k in {*saved, *identity} if saved.get(k) != identity.get(k))


def flush(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
