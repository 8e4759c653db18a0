"""Weights of a module as tensors by name, and as safetensors files.

If ZeRO-3 has partitioned a module over processes, its tensors are gathered one at a time, so no
process ever holds all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError, one_line
from w2s_fast.files import usual_mode
from w2s_fast.paths import user_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SHARD_BYTES = 5 * 10**9


def save_weights(
    model: nn.Module,
    path: str | Path,
    world: World = SINGLE_PROCESS,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's weights as one safetensors file, or as several and an index.

    A collective call: rank 0 writes, with one file at a time in memory. The file at ``path`` is
    written last, so its presence means that all are complete.

    Raises:
        W2SError: on every process, if they could not be written.
    """
    save_tensors(module_tensors(model).items(), path, world, shard_bytes)


def save_tensors(
    tensors: Iterable[tuple[str, Tensor]], path: str | Path, world: World, shard_bytes: int
) -> None:
    """Write tensors by name, partitioned or not; see ``save_weights``."""
    path = user_path(path, "path")
    writer = _Writer(path, shard_bytes) if world.is_main_process else None
    error = ""
    for name, t in tensors:
        with gathered([t]):
            if writer is not None and not error:
                error = writer.add(name, t)
    if writer is not None and not error:
        error = writer.finish()
    error = world.broadcast_object(error)
    if error:
        raise W2SError(f"weights could not be written to {path}: {error}")


class _Writer:
    """Collects tensors up to the size of a shard, then writes it."""

    def __init__(self, path: Path, shard_bytes: int) -> None:
        self.path, self.limit = path, shard_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total = 0
        self.files: dict[str, list[str]] = {}

    def add(self, name: str, t: Tensor) -> str:
        """Add a tensor; return an error message, empty if there is none."""
        error = ""
        if self.pending and self.pending_bytes + t.nbytes > self.limit:
            error = self.write(self.path.with_name(f"{self.path.stem}-{len(self.files):05d}.part"))
        self.pending[name] = t.detach().to("cpu", copy=True).contiguous()
        self.pending_bytes += t.nbytes
        self.total += t.nbytes
        return error

    def write(self, path: Path) -> str:
        """Write the pending tensors atomically; return an error message."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(self.pending, temporary, metadata={"format": "pt"})
            temporary.chmod(usual_mode())
            os.replace(temporary, path)
        except (OSError, SafetensorError) as e:
            temporary.unlink(missing_ok=True)
            return one_line(e)
        self.files[path.name] = list(self.pending)
        self.pending, self.pending_bytes = {}, 0
        return ""

    def finish(self) -> str:
        """Write the last file; name several as transformers does, with an index."""
        if not self.files:
            return self.write(self.path)
        last = self.path.with_name(f"{self.path.stem}-{len(self.files):05d}.part")
        if error := self.write(last):
            return error
        names: dict[str, str] = {}
        n = len(self.files)
        for i, (part, tensors) in enumerate(self.files.items()):
            name = f"{self.path.stem}-{i + 1:05d}-of-{n:05d}.safetensors"
            os.replace(self.path.with_name(part), self.path.with_name(name))
            names |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": self.total}, "weight_map": names}
        text = json.dumps(index, indent=1, sort_keys=True)
        _index(self.path).write_text(text, encoding="utf-8")
        return ""


def load_weights(model: nn.Module, path: str | Path, world: World = SINGLE_PROCESS) -> None:
    """Load a file of ``save_weights`` into a model built from the same configuration.

    A collective call. A partitioned model is filled tensor by tensor with the values of rank 0.

    Raises:
        W2SError: if the files cannot be read or do not fit.
    """
    load_module(model, read_tensors(path), world)


def read_tensors(path: str | Path) -> Mapping[str, Tensor]:
    """Map names to tensors of a safetensors file or of the files in its index, read on access.

    Raises:
        W2SError: if a file cannot be read.
    """
    path = user_path(path, "path")
    if not path.exists() and _index(path).exists():
        files = read_index(path)
        return _LazyTensors({name: path.with_name(file) for name, file in files.items()})
    return _LazyTensors(dict.fromkeys(_names(path), path))


def read_index(path: Path) -> dict[str, str]:
    """Return the file of each tensor by the index of ``path``; all are beside it.

    Raises:
        W2SError: if the index cannot be read, or names a file in another folder.
    """
    index = _index(path)
    try:
        files: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        wrong = next((f for f in files.values() if f in ("", "..") or Path(f).name != f), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise W2SError(f"weights {index} cannot be read: {one_line(e)}") from e
    if wrong is not None:
        raise W2SError(f"{index} names {wrong!r}; expected the name of a file beside it")
    return files


class _LazyTensors(Mapping[str, "Tensor"]):
    """Tensors by name, read from disk on access."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        path = self._places[name]
        with _opened(path) as f:
            return f.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except (OSError, SafetensorError) as e:
        raise W2SError(f"weights {path} cannot be read: {one_line(e)}") from e


def _names(path: Path) -> list[str]:
    with _opened(path) as f:
        return list(f.keys())


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name; tied ones once, partitioned ones as is."""
    out: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, t in module.state_dict(keep_vars=True).items():
        key = id(t) if is_partitioned(t) else (t.data_ptr(), t.shape)
        if (t.numel() == 0 and not is_partitioned(t)) or key not in seen:
            seen.add(key)
            out[name] = t
    return out


def is_partitioned(t: Tensor) -> bool:
    """Return whether ZeRO-3 has partitioned this parameter; it is empty outside ``gathered``."""
    return hasattr(t, "ds_id")


def shape_of(t: Tensor) -> torch.Size:
    """Return the shape of a tensor; for a partitioned one that of the whole."""
    return t.ds_shape if is_partitioned(t) else t.shape  # type: ignore[attr-defined]


def share_of(weight: Tensor, world: World) -> Tensor:
    """Return a copy of this process's share (1, n / processes), with zeros after the end."""
    import torch

    flat = weight.detach().flatten()
    length = -(-len(flat) // world.size)
    own = flat[world.rank * length : (world.rank + 1) * length]
    return torch.nn.functional.pad(own, (0, length - len(own)))[None]


def whole_of(share: Tensor, like: Tensor, world: World) -> Tensor:
    """Return a tensor of the shape of ``like`` from the shares of all processes; collective."""
    shape = shape_of(like)
    return world.all_gather(share).flatten()[: shape.numel()].view(shape)


@contextlib.contextmanager
def gathered(tensors: Iterable[Tensor], change: bool = False) -> Iterator[None]:
    """Gather partitioned parameters inside the block; a collective call.

    Args:
        tensors: partitioned or not.
        change: broadcast what rank 0 writes into them when the block ends.
    """
    parts = [t for t in tensors if is_partitioned(t)]
    if not parts:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts, modifier_rank=0 if change else None):
        yield


def sample_weights(module: nn.Module, n: int = 64) -> Tensor:
    """Return at most ``n`` evenly spaced entries of each tensor, 1-d fp32 on the CPU.

    Models of one architecture with other weights differ in them. A collective call if the module
    is partitioned.
    """
    import torch

    parts = []
    for t in module_tensors(module).values():
        with gathered([t]):
            flat = t.detach().flatten()
            parts.append(flat[:: max(1, -(-len(flat) // n))].float().cpu())
    return torch.cat(parts)


def load_module(
    module: nn.Module, tensors: Mapping[str, Tensor], world: World = SINGLE_PROCESS
) -> None:
    """Copy saved tensors into a module of the same architecture.

    Raises:
        W2SError: if names or shapes do not fit.
    """
    targets = module_tensors(module)
    for name in sorted({*targets, *tensors}):
        target = targets.get(name)
        with gathered([] if target is None else [target], change=True):
            partitioned = target is not None and is_partitioned(target)
            if partitioned and not world.is_main_process and name in tensors:
                continue  # DeepSpeed broadcasts rank 0's values of a partitioned tensor
            _copy(name, tensors.get(name), target)


def _copy(name: str, saved: Tensor | None, target: Tensor | None) -> None:
    if saved is None or target is None or saved.shape != target.shape:
        raise W2SError(
            f"saved weights do not fit the model at {name!r}: saved "
            f"{None if saved is None else tuple(saved.shape)}, expected "
            f"{None if target is None else tuple(target.shape)}; build the model they came from"
        )
    target.detach().copy_(saved)


def _index(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")
